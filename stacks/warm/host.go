package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/pulumi/pulumi/pkg/v3/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/env"
	"github.com/pulumi/pulumi/sdk/v3/go/common/workspace"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// A host gives one operation its language and its providers. All of them outlive it: nothing is closed at its end.
type host struct {
	op       *operation
	launcher *grpc.ClientConn
	diag     diag.Sink
	status   diag.Sink

	guard sync.Mutex
	lent  []*borrowed
}

var errNotHere = errors.New("the warm engine does not do that: use a plain pulumi")

func newHost(op *operation) (*host, error) {
	launcher, err := op.pool.dial(op.asked.Socket)
	if err != nil {
		return nil, err
	}
	return &host{op: op, launcher: launcher}, nil
}

func (h *host) factory(_ context.Context, d, status diag.Sink, _ plugin.DebugContext) (plugin.Host, error) {
	h.diag, h.status = d, status
	return h, nil
}

// LanguageRuntime answers the launcher, which runs the program.
func (h *host) LanguageRuntime(*plugin.Context, string) (plugin.LanguageRuntime, error) {
	client := pulumirpc.NewLanguageRuntimeClient(h.launcher)
	return &program{LanguageRuntime: plugin.NewLanguageRuntimeClient(inlineRuntime, client), name: h.op.asked.Program}, nil
}

// Provider answers the launcher for the packages that it serves, else a plugin of the pool.
func (h *host) Provider(ctx *plugin.Context, wanted workspace.PluginDescriptor, _ env.Env) (plugin.Provider, error) {
	if socket := h.op.asked.Attached[wanted.Name]; socket != "" {
		served, err := h.op.pool.attached(socket)
		if err != nil {
			return nil, err
		}
		return &lasting{plugin.NewProviderWithClient(ctx, served, false)}, nil
	}
	if wanted.Name == "pulumi-python" || wanted.Name == "pulumi-nodejs" {
		// Dynamic providers run code that their caller sends, and any local user can call the engine's monitor.
		return nil, fmt.Errorf("dynamic providers are switched off: %s", wanted.Name)
	}
	lent, err := h.op.pool.borrow(h.op.lasting, wanted, h.op.asked.Plugins[wanted.Name], h.op.asked.Environ, h.diag)
	if err != nil {
		return nil, err
	}
	h.guard.Lock()
	h.lent = append(h.lent, lent)
	h.guard.Unlock()
	return &lasting{plugin.NewProviderWithClient(ctx, lent, false)}, nil
}

// ServerAddr is nobody's: what is started here gets its address from the pool.
func (h *host) ServerAddr() string { return "" }

func (h *host) Log(severity diag.Severity, urn resource.URN, text string, stream int32) {
	h.diag.Logf(severity, diag.StreamMessage(urn, text, stream))
}

func (h *host) LogStatus(severity diag.Severity, urn resource.URN, text string, stream int32) {
	h.status.Logf(severity, diag.StreamMessage(urn, text, stream))
}

// SignalCancellation does nothing: a provider is shared, and what one operation cancels the others go on with.
func (h *host) SignalCancellation() error { return nil }

func (h *host) ReleaseContext(*plugin.Context) error { return nil }

// Close gives back what was lent; the engine calls it when the operation is over.
func (h *host) Close() error {
	h.guard.Lock()
	defer h.guard.Unlock()
	for _, lent := range h.lent {
		lent.giveBack()
	}
	h.lent = nil
	return nil
}

func (h *host) ResolvePlugin(_ *plugin.Context, wanted workspace.PluginDescriptor) (*workspace.PluginInfo, error) {
	return &workspace.PluginInfo{Name: wanted.Name, Kind: wanted.Kind, Version: wanted.Version}, nil
}

func (h *host) PolicyAnalyzer(
	*plugin.Context, tokens.QName, string, *plugin.PolicyAnalyzerOptions,
) (plugin.Analyzer, error) {
	return nil, errNotHere
}

func (h *host) Loader(*plugin.Context) (*plugin.GrpcServer, error)   { return nil, nil }
func (h *host) Mapper(*plugin.Context) (*plugin.GrpcServer, error)   { return nil, nil }
func (h *host) Resolver(*plugin.Context) (*plugin.GrpcServer, error) { return nil, nil }
func (h *host) StartDebugging(plugin.DebuggingInfo) error            { return errNotHere }
func (h *host) AttachDebugger(plugin.DebugSpec) bool                 { return false }

// A program is run by the launcher under the name that the operation gave.
type program struct {
	plugin.LanguageRuntime
	name string
}

func (p *program) Run(ctx context.Context, info plugin.RunInfo) (string, bool, error) {
	info.Args = []string{p.name}
	return p.LanguageRuntime.Run(ctx, info)
}

// GetRequiredPackages knows of none: what a program needs is found when it registers a resource.
func (p *program) GetRequiredPackages(
	context.Context, plugin.ProgramInfo,
) ([]workspace.PackageDescriptor, []workspace.PackageSpec, error) {
	return nil, nil, nil
}

func (p *program) GetPluginInfo(context.Context) (plugin.PluginInfo, error) {
	return plugin.PluginInfo{}, nil
}
func (p *program) Close() error { return nil }

// A lasting provider is not closed or cancelled by the operations that use it.
type lasting struct{ plugin.Provider }

func (lasting) Close() error                             { return nil }
func (lasting) SignalCancellation(context.Context) error { return nil }

var (
	_ plugin.Host            = (*host)(nil)
	_ plugin.LanguageRuntime = (*program)(nil)
	_ plugin.Provider        = (*lasting)(nil)
)
