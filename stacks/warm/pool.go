package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	"github.com/pulumi/pulumi/sdk/v3/go/common/workspace"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

const (
	idleLife = 5 * time.Minute  // that a plugin is kept which nobody uses
	idleLook = 30 * time.Second // between two looks for such plugins
)

// A pool keeps what operations share: the connections to the launcher, and the plugins that were started.
//
// A plugin's process serves one configuration and environment, at once for all operations that have it, and is never
// cancelled or closed by one of them. Races, listed once: a process that dies while it is lent fails the calls of those
// who have it, and is never lent again; two operations that need a first process at once start two, and the one that is
// not needed idles.
type pool struct {
	folder string // of the sockets; its user alone can enter it
	tell   func(severity, urn, text string)

	guard       sync.Mutex
	connections map[string]*grpc.ClientConn
	providers   map[string]*attached        // by socket
	plugins     map[string][]*pluginProcess // by kind
	engine      *grpc.Server                // what plugins log to
	closed      bool
}

func newPool(folder string, tell func(severity, urn, text string)) *pool {
	return &pool{
		folder:      folder,
		tell:        tell,
		connections: map[string]*grpc.ClientConn{},
		providers:   map[string]*attached{},
		plugins:     map[string][]*pluginProcess{},
	}
}

// dial answers the one connection to a socket of the launcher.
func (p *pool) dial(socket string) (*grpc.ClientConn, error) {
	p.guard.Lock()
	defer p.guard.Unlock()
	if known := p.connections[socket]; known != nil {
		return known, nil
	}
	made, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), rpcutil.GrpcChannelOptions())
	if err != nil {
		return nil, err
	}
	p.connections[socket] = made
	return made, nil
}

// attached answers the provider that the launcher serves on a socket.
func (p *pool) attached(socket string) (*attached, error) {
	launcher, err := p.dial(socket)
	if err != nil {
		return nil, err
	}
	p.guard.Lock()
	defer p.guard.Unlock()
	if p.providers[socket] == nil {
		p.providers[socket] = &attached{
			ResourceProviderClient: pulumirpc.NewResourceProviderClient(launcher),
			configured:             map[string]*pulumirpc.ConfigureResponse{},
		}
	}
	return p.providers[socket], nil
}

// borrow lends a plugin for one operation; the plugin is started where none runs. Without its executable it is searched.
func (p *pool) borrow(
	ctx context.Context, wanted workspace.PluginDescriptor, binary string, environ map[string]string, sink diag.Sink,
) (*borrowed, error) {
	if binary == "" {
		found, err := findPlugin(ctx, sink, wanted)
		if err != nil {
			return nil, err
		}
		binary = found
	}
	process, err := p.lend(ctx, newKind(binary, environ), func(*pluginProcess) bool { return true })
	if err != nil {
		return nil, err
	}
	return &borrowed{ResourceProviderClient: process.client, pool: p, process: process}, nil
}

// lend answers a process of the kind that will do, or starts one.
func (p *pool) lend(ctx context.Context, kind *pluginKind, willDo func(*pluginProcess) bool) (*pluginProcess, error) {
	address, err := p.address()
	if err != nil {
		return nil, err
	}
	p.guard.Lock()
	for _, process := range p.plugins[kind.key] {
		if !process.dead.Load() && willDo(process) {
			process.users++
			p.guard.Unlock()
			return process, nil
		}
	}
	p.guard.Unlock()
	process, err := startPlugin(ctx, kind, address)
	if err != nil {
		return nil, err
	}
	p.guard.Lock()
	defer p.guard.Unlock()
	if p.closed {
		process.stop()
		return nil, errors.New("the engine is about to end")
	}
	process.users = 1
	p.plugins[kind.key] = append(p.plugins[kind.key], process)
	return process, nil
}

func (p *pool) giveBack(process *pluginProcess) {
	p.guard.Lock()
	defer p.guard.Unlock()
	process.users--
	process.used = time.Now()
}

// drop ends the plugins that died or that nobody has used for a while.
func (p *pool) drop(before time.Time) {
	p.guard.Lock()
	defer p.guard.Unlock()
	for kind, processes := range p.plugins {
		kept := processes[:0]
		for _, process := range processes {
			if process.users == 0 && (process.dead.Load() || process.used.Before(before)) {
				process.stop()
			} else {
				kept = append(kept, process)
			}
		}
		if len(kept) == 0 {
			delete(p.plugins, kind)
		} else {
			p.plugins[kind] = kept
		}
	}
}

// tidy drops idle plugins as long as the process lives.
func (p *pool) tidy() {
	for range time.Tick(idleLook) {
		p.drop(time.Now().Add(-idleLife))
	}
}

func (p *pool) size() int {
	p.guard.Lock()
	defer p.guard.Unlock()
	count := 0
	for _, processes := range p.plugins {
		for _, process := range processes {
			if !process.dead.Load() {
				count++
			}
		}
	}
	return count
}

func (p *pool) close() {
	p.guard.Lock()
	defer p.guard.Unlock()
	p.closed = true
	if p.engine != nil {
		p.engine.Stop() // which removes its socket
	}
	for _, processes := range p.plugins {
		for _, process := range processes {
			process.stop()
		}
	}
}

// address answers where plugins log to: a socket that the launcher's user alone can reach.
func (p *pool) address() (string, error) {
	p.guard.Lock()
	defer p.guard.Unlock()
	socket := filepath.Join(p.folder, fmt.Sprintf("engine-%d", os.Getpid())) // the launcher may have several engines
	if p.engine == nil {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			return "", err
		}
		p.engine = grpc.NewServer()
		pulumirpc.RegisterEngineServer(p.engine, &engineServer{tell: p.tell})
		go func() { _ = p.engine.Serve(listener) }()
	}
	return "unix:" + socket, nil
}

// A borrowed plugin is one operation's view of a process. Its configuration decides which process that is.
type borrowed struct {
	pulumirpc.ResourceProviderClient
	pool    *pool
	process *pluginProcess
}

// Configure configures a process once; whoever has the same configuration shares it.
func (b *borrowed) Configure(
	ctx context.Context, asked *pulumirpc.ConfigureRequest, options ...grpc.CallOption,
) (*pulumirpc.ConfigureResponse, error) {
	wanted, err := fingerprint(asked)
	if err != nil {
		return nil, err
	}
	process, err := b.pool.lend(ctx, b.process.kind, func(each *pluginProcess) bool { return each.take(wanted) })
	if err != nil {
		return nil, err
	}
	process.take(wanted) // a new one has none yet
	b.pool.giveBack(b.process)
	b.process, b.ResourceProviderClient = process, process.client
	return process.configure(ctx, asked, options...)
}

// fingerprint tells configurations apart, whoever has them.
func fingerprint(asked *pulumirpc.ConfigureRequest) (string, error) {
	same := proto.CloneOf(asked)
	same.Id, same.Name, same.Type, same.Urn = nil, nil, nil, nil
	fingerprint, err := proto.MarshalOptions{Deterministic: true}.Marshal(same)
	return string(fingerprint), err
}

// Cancel does nothing: some plugins take it as the end of their life, and others use this one.
func (b *borrowed) Cancel(context.Context, *emptypb.Empty, ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// Attach does nothing: the plugin knows its engine.
func (b *borrowed) Attach(context.Context, *pulumirpc.PluginAttach, ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (b *borrowed) giveBack() { b.pool.giveBack(b.process) }

// An attached provider is served by the launcher: it is asked once for each configuration, not for each operation.
type attached struct {
	pulumirpc.ResourceProviderClient
	guard      sync.Mutex
	configured map[string]*pulumirpc.ConfigureResponse
}

func (a *attached) Configure(
	ctx context.Context, asked *pulumirpc.ConfigureRequest, options ...grpc.CallOption,
) (*pulumirpc.ConfigureResponse, error) {
	wanted, err := fingerprint(asked)
	if err != nil {
		return nil, err
	}
	a.guard.Lock()
	known := a.configured[wanted]
	a.guard.Unlock()
	if known != nil {
		return known, nil
	}
	configured, err := a.ResourceProviderClient.Configure(ctx, asked, options...)
	if err == nil {
		a.guard.Lock()
		a.configured[wanted] = configured
		a.guard.Unlock()
	}
	return configured, err
}

// An engineServer is what plugins report to.
type engineServer struct {
	pulumirpc.UnimplementedEngineServer
	tell func(severity, urn, text string)
}

func (e *engineServer) Log(_ context.Context, told *pulumirpc.LogRequest) (*emptypb.Empty, error) {
	names := map[pulumirpc.LogSeverity]string{
		pulumirpc.LogSeverity_INFO:    "info",
		pulumirpc.LogSeverity_WARNING: "warning",
		pulumirpc.LogSeverity_ERROR:   "error",
	}
	if name := names[told.Severity]; name != "" && !told.Ephemeral {
		e.tell(name, told.Urn, told.Message)
	}
	return &emptypb.Empty{}, nil
}

func (e *engineServer) RequirePulumiVersion(
	context.Context, *pulumirpc.RequirePulumiVersionRequest,
) (*pulumirpc.RequirePulumiVersionResponse, error) {
	return &pulumirpc.RequirePulumiVersionResponse{}, nil
}
