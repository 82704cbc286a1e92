package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blang/semver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	"github.com/pulumi/pulumi/sdk/v3/go/common/workspace"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

const pluginStart = 30 * time.Second // that a plugin gets to tell its port

// A pluginKind tells plugins apart before they are configured: by their executable, and what they find around them.
type pluginKind struct {
	binary  string
	environ []string
	key     string
}

func newKind(binary string, environ map[string]string) *pluginKind {
	kind := &pluginKind{binary: binary}
	for name, value := range environ {
		kind.environ = append(kind.environ, name+"="+value)
	}
	slices.Sort(kind.environ)
	whole := sha256.Sum256([]byte(binary + "\x00" + strings.Join(kind.environ, "\x00")))
	kind.key = string(whole[:])
	return kind
}

// A pluginProcess is a provider plugin that runs until it is stopped or dies.
type pluginProcess struct {
	kind   *pluginKind
	client pulumirpc.ResourceProviderClient
	conn   *grpc.ClientConn
	stop   func()
	dead   atomic.Bool
	users  int       // the pool's guard holds for this
	used   time.Time // and for this

	guard      sync.Mutex
	wanted     string // the configuration that it has, or is about to get
	configured *pulumirpc.ConfigureResponse
}

// take says whether the process has this configuration, or none yet: then it gets this one.
func (p *pluginProcess) take(wanted string) bool {
	p.guard.Lock()
	defer p.guard.Unlock()
	if p.wanted == "" {
		p.wanted = wanted
	}
	return p.wanted == wanted
}

func (p *pluginProcess) configure(
	ctx context.Context, asked *pulumirpc.ConfigureRequest, options ...grpc.CallOption,
) (*pulumirpc.ConfigureResponse, error) {
	p.guard.Lock()
	defer p.guard.Unlock()
	if p.configured != nil {
		return p.configured, nil
	}
	configured, err := p.client.Configure(ctx, asked, options...)
	if err != nil {
		p.dead.Store(true) // half-configured: nobody else gets it
		return nil, err
	}
	p.configured = configured
	return configured, nil
}

// findPlugin answers the executable: what the project or PATH has, else the installed one of the same major version.
func findPlugin(ctx context.Context, sink diag.Sink, wanted workspace.PluginDescriptor) (string, error) {
	path, err := workspace.GetPluginPath(ctx, sink, wanted, nil)
	if err == nil {
		return path, nil
	}
	installed, listed := workspace.GetPlugins()
	if listed != nil {
		return "", err
	}
	var best *workspace.PluginInfo
	for _, each := range installed {
		if each.Kind != apitype.ResourcePlugin || each.Name != wanted.Name || !sameMajor(each.Version, wanted.Version) {
			continue
		}
		if best == nil || (best.Version != nil && each.Version.GT(*best.Version)) {
			best = &each
		}
	}
	if best == nil {
		return "", err
	}
	return filepath.Join(best.Path, "pulumi-resource-"+wanted.Name), nil
}

func sameMajor(have, want *semver.Version) bool {
	return have != nil && (want == nil || have.Major == want.Major)
}

// startPlugin runs a plugin that dies with this process, and answers when it has told its port.
func startPlugin(ctx context.Context, kind *pluginKind, engine string) (*pluginProcess, error) {
	name := filepath.Base(kind.binary)
	command := exec.Command(kind.binary, engine)
	command.Env = kind.environ
	command.SysProcAttr = diesWithUs()
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("the provider %s cannot be started: %w", name, err)
	}
	kill := sync.OnceFunc(func() { _ = command.Process.Kill() })
	port, err := toldPort(ctx, bufio.NewReader(output), kill)
	if err != nil {
		kill()
		_ = command.Wait()
		return nil, fmt.Errorf("the provider %s did not start: %w", name, err)
	}
	process := &pluginProcess{kind: kind, used: time.Now()}
	conn, err := grpc.NewClient("127.0.0.1:"+port,
		grpc.WithTransportCredentials(insecure.NewCredentials()), rpcutil.GrpcChannelOptions(),
		grpc.WithUnaryInterceptor(process.notice))
	if err != nil {
		kill()
		return nil, err
	}
	process.conn, process.client = conn, pulumirpc.NewResourceProviderClient(conn)
	process.stop = func() {
		process.dead.Store(true)
		_ = conn.Close()
		kill()
	}
	go func() {
		_ = command.Wait()
		process.dead.Store(true)
	}()
	return process, nil
}

// toldPort reads the one line that a plugin writes; what follows is drained.
func toldPort(ctx context.Context, output *bufio.Reader, kill func()) (string, error) {
	late := time.AfterFunc(pluginStart, kill)
	defer late.Stop()
	stop := context.AfterFunc(ctx, kill)
	defer stop()
	line, err := output.ReadString('\n')
	if err != nil {
		return "", err
	}
	go func() { _, _ = output.WriteTo(os.Stderr) }()
	return strings.TrimSpace(line), nil
}

// notice marks the process dead where a call finds nobody.
func (p *pluginProcess) notice(
	ctx context.Context, method string, asked, answer any, conn *grpc.ClientConn, call grpc.UnaryInvoker,
	options ...grpc.CallOption,
) error {
	err := call(ctx, method, asked, answer, conn, options...)
	if status.Code(err) == codes.Unavailable {
		p.dead.Store(true)
		return status.Errorf(codes.Unavailable, "the provider %s ended while it was asked: %v",
			filepath.Base(p.kind.binary), err)
	}
	return err
}
