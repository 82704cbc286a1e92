package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/version"
)

// A server performs operations at once, one at a time for each stack: Pulumi's own lock, which the launcher takes,
// tells processes apart, not operations.
type server struct {
	answers *sink
	pool    *pool

	guard     sync.Mutex
	inFlight  map[int64]*operation
	busy      map[string]bool // by project and stack, previews left out
	ending    bool
	idle      *sync.Cond
	performed atomic.Int64
	dismissed atomic.Bool // the launcher lives on without this process
}

func newServer(answers io.Writer, folder string) *server {
	s := &server{
		answers:  &sink{to: answers},
		inFlight: map[int64]*operation{},
		busy:     map[string]bool{},
	}
	s.idle = sync.NewCond(&s.guard)
	s.pool = newPool(folder, s.tell)
	go s.pool.tidy()
	return s
}

// tell notes what a plugin logs with the operation on its stack, which the URN names; what has none goes to all.
func (s *server) tell(severity, urn, text string) {
	s.guard.Lock()
	defer s.guard.Unlock()
	for _, op := range s.inFlight {
		own := fmt.Sprintf("urn:pulumi:%s::%s::", op.asked.Stack, op.asked.Project)
		if urn == "" || strings.HasPrefix(urn, own) {
			op.tell(severity, urn, text)
		}
	}
}

// serve reads requests until the launcher closes the connection.
func (s *server) serve(requests *bufio.Reader) error {
	s.answers.write(answer{Event: "ready", Protocol: protocolVersion, Version: version.Version})
	for {
		line, err := readLine(requests)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal(line, &asked); err != nil {
			return fmt.Errorf("a request that cannot be read: %w", err)
		}
		s.take(&asked)
	}
}

func readLine(requests *bufio.Reader) ([]byte, error) {
	var whole []byte
	for {
		part, err := requests.ReadSlice('\n')
		whole = append(whole, part...)
		if err == nil {
			return whole, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(whole) > longestLine {
			return nil, errors.New("a request that is too long")
		}
	}
}

func (s *server) take(asked *request) {
	switch asked.Op {
	case "up", "preview", "destroy", "refresh":
		s.begin(asked)
	case "cancel", "saved":
		s.guard.Lock()
		op := s.inFlight[asked.ID]
		s.guard.Unlock()
		if op == nil {
			return // it has ended meanwhile
		}
		if asked.Op == "cancel" {
			op.cancel(asked.Now)
		} else {
			op.saved <- asked.Error
		}
	case "bye":
		s.dismissed.Store(true)
	case "stats":
		s.answers.write(answer{Event: "stats", ID: asked.ID, Stats: s.stats()})
	default:
		s.answers.write(answer{Event: "done", ID: asked.ID, Error: fmt.Sprintf("unknown operation %q", asked.Op)})
	}
}

func (s *server) begin(asked *request) {
	name := asked.Project + "/" + asked.Stack
	changes := asked.Op != "preview"
	op := newOperation(asked, s.answers, s.pool)
	s.guard.Lock()
	refused := ""
	switch {
	case s.ending:
		refused = "the engine is about to end"
	case changes && s.busy[name]:
		refused = fmt.Sprintf("another operation of this process works on the stack %s: it is currently locked", name)
	default:
		s.inFlight[asked.ID] = op
		if changes {
			s.busy[name] = true
		}
	}
	s.guard.Unlock()
	if refused != "" {
		s.answers.write(answer{Event: "done", ID: asked.ID, Error: refused})
		return
	}
	s.performed.Add(1)
	go func() {
		defer s.fault(asked.ID)
		done := op.perform()
		s.guard.Lock()
		delete(s.inFlight, asked.ID)
		if changes {
			delete(s.busy, name)
		}
		s.idle.Broadcast()
		s.guard.Unlock()
		s.answers.write(done)
	}()
}

// fault tells of a panic and ends the process: the engine's own structures may be in any state.
func (s *server) fault(id int64) {
	if reason := recover(); reason != nil {
		trace := fmt.Sprintf("%v\n%s", reason, debug.Stack())
		s.answers.write(map[string]any{"event": "fault", "id": id, "message": trace})
		fmt.Fprintln(os.Stderr, trace)
		os.Exit(2)
	}
}

// end cancels what is in flight, waits for it as long as it may, and ends the process.
func (s *server) end(why string, patience time.Duration) {
	s.guard.Lock()
	s.ending = true
	for _, op := range s.inFlight {
		op.cancel(false)
	}
	late := time.AfterFunc(patience, func() {
		fmt.Fprintln(os.Stderr, "the engine ended before its operations did:", why)
		s.pool.close()
		os.Exit(3)
	})
	for len(s.inFlight) > 0 {
		s.idle.Wait()
	}
	s.guard.Unlock()
	late.Stop()
	s.pool.close()
}

func (s *server) stats() *stats {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	open, _ := os.ReadDir("/dev/fd")
	s.guard.Lock()
	defer s.guard.Unlock()
	return &stats{
		Operations:  s.performed.Load(),
		InFlight:    len(s.inFlight),
		Goroutines:  runtime.NumGoroutine(),
		HeapBytes:   int64(memory.HeapAlloc),
		Descriptors: len(open),
		Plugins:     s.pool.size(),
	}
}
