package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/blang/semver"
	"google.golang.org/grpc"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// programs serves programs: those called "waits" wait, those called "fails" fail, and the others declare nothing.
type programs struct {
	pulumirpc.UnimplementedLanguageRuntimeServer
	waiting chan struct{}
	goOn    chan struct{}
}

func (p *programs) Run(ctx context.Context, asked *pulumirpc.RunRequest) (*pulumirpc.RunResponse, error) {
	switch asked.Args[0] {
	case "waits":
		p.waiting <- struct{}{}
		select {
		case <-p.goOn:
		case <-ctx.Done():
		}
	case "fails":
		return &pulumirpc.RunResponse{Error: "no such thing"}, nil
	}
	return &pulumirpc.RunResponse{}, nil
}

// A launcher speaks to a server as run-launcher does.
type launcher struct {
	t        *testing.T
	socket   string
	programs *programs
	requests *io.PipeWriter
	done     chan error

	guard   sync.Mutex
	answers map[int64]chan answer
	last    int64
}

func newLauncher(t *testing.T) *launcher {
	t.Helper()
	folder := t.TempDir()
	l := &launcher{
		t:        t,
		socket:   filepath.Join(folder, "programs"),
		programs: &programs{waiting: make(chan struct{}, 8), goOn: make(chan struct{})},
		done:     make(chan error, 1),
		answers:  map[int64]chan answer{},
	}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	language := grpc.NewServer()
	pulumirpc.RegisterLanguageRuntimeServer(language, l.programs)
	go func() { _ = language.Serve(listener) }()
	t.Cleanup(language.Stop)
	asked, requests := io.Pipe()
	told, answers := io.Pipe()
	l.requests = requests
	s := newServer(answers, folder)
	go func() { l.done <- s.serve(bufio.NewReader(asked)) }()
	go l.listen(bufio.NewReader(told))
	t.Cleanup(func() { _ = requests.Close() })
	return l
}

func (l *launcher) listen(answers *bufio.Reader) {
	for {
		line, err := answers.ReadBytes('\n')
		if err != nil {
			return
		}
		var told answer
		if err := json.Unmarshal(line, &told); err != nil {
			panic(err)
		}
		l.guard.Lock()
		waiting := l.answers[told.ID]
		l.guard.Unlock()
		if waiting != nil {
			waiting <- told
		}
	}
}

func (l *launcher) begin(asked request) (int64, <-chan answer) {
	l.guard.Lock()
	l.last++
	asked.ID = l.last
	told := make(chan answer, 16)
	l.answers[asked.ID] = told
	l.guard.Unlock()
	if asked.Stack != "" {
		asked.Project, asked.Passphrase, asked.Socket, asked.Folder = "runs-00", "key", l.socket, l.t.TempDir()
	}
	l.send(asked)
	return asked.ID, told
}

func (l *launcher) send(asked request) {
	line, err := json.Marshal(asked)
	if err != nil {
		l.t.Fatal(err)
	}
	l.guard.Lock()
	defer l.guard.Unlock()
	if _, err := l.requests.Write(append(line, '\n')); err != nil {
		l.t.Error(err)
	}
}

func TestLivesAtOnce(t *testing.T) {
	l := newLauncher(t)
	_, told := l.begin(request{Op: "up", Stack: "first", Program: "empty"})
	first := <-told
	if first.Error != "" || first.Salt == "" {
		t.Fatalf("the first up: %+v", first)
	}
	turns := make(chan struct{}, 8)
	var lives sync.WaitGroup
	for number := range 40 {
		lives.Add(1)
		go func() {
			defer lives.Done()
			turns <- struct{}{}
			defer func() { <-turns }()
			program := map[bool]string{true: "fails", false: "empty"}[number%4 == 0]
			stack := fmt.Sprintf("s%d", number)
			_, told := l.begin(request{Op: "up", Stack: stack, Program: program, Salt: first.Salt})
			up := <-told
			if (up.Error != "") != (program == "fails") {
				t.Errorf("up of %s: %+v", program, up)
			}
			latest, _ := json.Marshal(up.Deployment)
			_, told = l.begin(request{Op: "destroy", Stack: stack, Deployment: latest, Salt: first.Salt})
			if down := <-told; down.Error != "" {
				t.Errorf("destroy: %+v", down)
			}
		}()
	}
	lives.Wait()
}

func TestOneOperationForEachStack(t *testing.T) {
	l := newLauncher(t)
	_, first := l.begin(request{Op: "up", Stack: "s", Program: "waits"})
	<-l.programs.waiting
	_, second := l.begin(request{Op: "up", Stack: "s", Program: "empty"})
	if refused := <-second; !strings.Contains(refused.Error, "currently locked") {
		t.Errorf("a second operation: %+v", refused)
	}
	_, preview := l.begin(request{Op: "preview", Stack: "s", Program: "empty"})
	if seen := <-preview; seen.Error != "" || seen.Deployment != nil {
		t.Errorf("a preview meanwhile: %+v", seen)
	}
	l.programs.goOn <- struct{}{}
	if done := <-first; done.Error != "" {
		t.Errorf("the first: %+v", done)
	}
}

func TestCancel(t *testing.T) {
	for _, now := range []bool{false, true} {
		l := newLauncher(t)
		id, told := l.begin(request{Op: "up", Stack: "s", Program: "waits"})
		<-l.programs.waiting
		l.send(request{Op: "cancel", ID: id, Now: now})
		if done := <-told; done.Error == "" || !done.Cancelled {
			t.Errorf("cancelled with now=%v: %+v", now, done)
		}
	}
}

func TestOneCheckpointUnlessThereIsSomethingToForget(t *testing.T) {
	thing := func(id string) apitype.ResourceV3 {
		urn := resource.URN("urn:pulumi:s::p::noting:index:Thing::" + id)
		return apitype.ResourceV3{URN: urn, Custom: true, Type: "noting:index:Thing", ID: resource.ID(id)}
	}
	goingOn := []apitype.OperationV2{{Resource: thing("next"), Type: apitype.OperationTypeCreating}}
	save := func(op *operation, pending []apitype.OperationV2, made ...apitype.ResourceV3) error {
		deployment := &apitype.DeploymentV3{Resources: made, PendingOperations: pending}
		return op.Save(apitype.TypedDeployment{Deployment: deployment})
	}
	var told strings.Builder
	op := newOperation(&request{ID: 7}, &sink{to: &told}, nil)
	op.saved <- ""

	for _, err := range []error{save(op, goingOn), save(op, nil, thing("one"))} {
		if err != nil || told.Len() != 0 {
			t.Errorf("a checkpoint that nothing needs: %v, %s", err, told.String())
		}
	}
	if err := save(op, goingOn, thing("one")); err != nil || !strings.Contains(told.String(), `"checkpoint","id":7`) {
		t.Errorf("what was made before the next step: %v, %s", err, told.String())
	}
	told.Reset()
	if err := save(op, goingOn, thing("one")); err != nil || told.Len() != 0 {
		t.Errorf("what is kept already: %v, %s", err, told.String())
	}
	op.saved <- "the disk is full"
	if err := save(op, goingOn, thing("one"), thing("two")); err == nil || err.Error() != "the disk is full" {
		t.Errorf("a checkpoint that could not be kept: %v", err)
	}
}

func TestWrongRequests(t *testing.T) {
	l := newLauncher(t)
	_, told := l.begin(request{Op: "fly"})
	if refused := <-told; !strings.Contains(refused.Error, `unknown operation "fly"`) {
		t.Errorf("an unknown operation: %+v", refused)
	}
	_, told = l.begin(request{Op: "up", Stack: "s", Program: "empty", Deployment: json.RawMessage(`{"resources": 3}`)})
	if refused := <-told; !strings.Contains(refused.Error, "the state cannot be read") {
		t.Errorf("a broken state: %+v", refused)
	}
	_, told = l.begin(request{Op: "stats"})
	if held := <-told; held.Stats == nil || held.Stats.InFlight != 0 || held.Stats.Operations != 1 {
		t.Errorf("stats: %+v", held.Stats)
	}
	if _, err := l.requests.Write([]byte("{\n")); err != nil {
		t.Fatal(err)
	}
	if err := <-l.done; err == nil {
		t.Error("a request that is no JSON was taken")
	}
}

func TestPanic(t *testing.T) {
	if os.Getenv("TO_PANIC") != "" {
		defer newServer(os.Stdout, "").fault(7)
		panic("no such thing")
	}
	again := exec.Command(os.Args[0], "-test.run=^TestPanic$")
	again.Env = append(os.Environ(), "TO_PANIC=1")
	said, err := again.Output()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.ExitCode() != 2 {
		t.Fatalf("the process ended with %v", err)
	}
	var told struct {
		Event   string
		ID      int64
		Message string
	}
	if err := json.Unmarshal(said, &told); err != nil {
		t.Fatal(err)
	}
	if told.Event != "fault" || told.ID != 7 || !strings.Contains(told.Message, "no such thing\ngoroutine") {
		t.Errorf("got %+v", told)
	}
}

func TestLongLine(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	line, err := readLine(bufio.NewReaderSize(strings.NewReader(long+"\nnext\n"), 1<<10))
	if err != nil || len(line) != len(long)+1 {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}

func TestSameMajor(t *testing.T) {
	version := func(text string) *semver.Version { made := semver.MustParse(text); return &made }
	for _, each := range []struct {
		have, want *semver.Version
		fits       bool
	}{
		{version("4.2.0"), version("4.9.1"), true},
		{version("4.2.0"), version("5.0.0"), false},
		{version("4.2.0"), nil, true},
		{nil, version("4.2.0"), false},
	} {
		if sameMajor(each.have, each.want) != each.fits {
			t.Errorf("%v for %v", each.have, each.want)
		}
	}
}
