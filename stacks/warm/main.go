// The warm engine: Pulumi's own engine, kept running by one launcher process for the stacks of all its threads.
//
// It reads requests from stdin and writes answers to stdout, one JSON object a line (protocol.go). It reads and writes
// no state: the launcher hands each operation its stack's latest deployment and keeps what comes of it, so backends,
// locks and leases are the launcher's own. Programs, and the provider that comes with run-launcher, are served by the
// launcher on a Unix socket that its user alone can reach.
//
// It ends when its stdin is closed or its launcher is gone: what is in flight is cancelled, and then left. Asked to end by
// a signal, it tells the launcher, who asks it for nothing more and closes the connection when all is done. Its argument
// is the folder of the launcher's sockets, which it removes where the launcher was killed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const (
	longestLine = 256 << 20              // bytes of one request: a state may be large
	parentPoll  = 250 * time.Millisecond // between two looks whether the launcher is still there
	patience    = 5 * time.Second        // that operations in flight get when the server has to end
)

func main() {
	parent := os.Getppid()
	answers, err := ownStdout()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: run-launcher-engine FOLDER; it is run by run-launcher, not by hand")
		os.Exit(2)
	}
	server := newServer(answers, os.Args[1])
	gone := make(chan string, 1)
	go watchParent(parent, gone)
	go watchSignals(server)
	go func() {
		if err := server.serve(bufio.NewReaderSize(os.Stdin, 1<<20)); err != nil {
			gone <- err.Error()
			return
		}
		gone <- "its launcher closed the connection"
	}()
	why := <-gone
	server.end(why, patience)
	if !server.dismissed.Load() {
		_ = os.RemoveAll(os.Args[1]) // the folder of the sockets: its launcher died, or it would have said good-bye
	}
}

// ownStdout takes stdout for the answers alone: parts of the engine print to it as if they were a command line.
func ownStdout() (io.Writer, error) {
	descriptor, err := syscall.Dup(1)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(descriptor)
	if err := dup2(2, 1); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(descriptor), "answers"), nil
}

// watchParent tells when the launcher is gone: a process that was forked from it may hold the connection open.
func watchParent(parent int, gone chan<- string) {
	for os.Getppid() == parent {
		time.Sleep(parentPoll)
	}
	gone <- "its launcher is gone"
}

func watchSignals(server *server) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE) // a terminal's: the launcher decides
	for range asked {
		server.answers.write(answer{Event: "leaving"})
	}
}

// A sink writes whole lines; what nobody reads any more is dropped.
type sink struct {
	guard sync.Mutex
	to    io.Writer
}

func (s *sink) write(answer any) {
	line, err := json.Marshal(answer)
	if err != nil {
		line, _ = json.Marshal(map[string]any{"event": "fault", "message": err.Error()})
	}
	s.guard.Lock()
	defer s.guard.Unlock()
	_, _ = s.to.Write(append(line, '\n'))
}
