package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/pulumi/pulumi/pkg/v3/backend"
	"github.com/pulumi/pulumi/pkg/v3/engine"
	"github.com/pulumi/pulumi/pkg/v3/resource/deploy"
	"github.com/pulumi/pulumi/pkg/v3/resource/stack"
	"github.com/pulumi/pulumi/pkg/v3/secrets"
	"github.com/pulumi/pulumi/pkg/v3/secrets/passphrase"
	"github.com/pulumi/pulumi/pkg/v3/util/cancel"
	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/diag/colors"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/config"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	"github.com/pulumi/pulumi/sdk/v3/go/common/workspace"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
)

// inlineRuntime is the language of programs that the launcher serves.
const inlineRuntime = "inline"

// An operation is one up, preview, destroy or refresh of one stack.
type operation struct {
	asked   *request
	answers *sink
	pool    *pool
	saved   chan string

	context *cancel.Context
	source  *cancel.Source
	lasting context.Context // until the operation is terminated; plugins may be started as long

	guard    sync.Mutex
	steps    [][2]string
	messages []message
	latest   *apitype.DeploymentV3

	kept map[string]bool // the resources in the state that the launcher has; Save alone reads and writes it
}

func newOperation(asked *request, answers *sink, pool *pool) *operation {
	ctx, source := cancel.NewContext(context.Background())
	return &operation{
		asked:   asked,
		answers: answers,
		pool:    pool,
		saved:   make(chan string, 1),
		context: ctx,
		source:  source,
		lasting: ctx.Base(),
	}
}

// cancel asks the operation to stop once what its providers have begun is done, or at once.
func (op *operation) cancel(now bool) {
	if now {
		op.source.Terminate()
	} else {
		op.source.Cancel()
	}
}

// perform runs the operation to its end and tells what came of it.
func (op *operation) perform() answer {
	salt, changed, err := op.run()
	cancelled := op.context.CancelErr() != nil
	op.source.Terminate() // lets go of what the engine keeps for the operation
	op.guard.Lock()
	defer op.guard.Unlock()
	done := answer{
		Event:     "done",
		ID:        op.asked.ID,
		Salt:      salt,
		Steps:     op.steps,
		Messages:  op.messages,
		Cancelled: cancelled,
	}
	if changed {
		done.Deployment = op.latest
	}
	if err != nil {
		done.Error = err.Error()
		if done.Error == "" {
			done.Error = "it failed"
		}
	}
	return done
}

// run answers the salt of a key that was made now, and whether the deployment may have changed.
func (op *operation) run() (string, bool, error) {
	manager, salt, err := op.secretsManager()
	if err != nil {
		return "", false, err
	}
	target, err := op.target(manager)
	if err != nil {
		return "", false, err
	}
	info := engine.UpdateInfo{
		Root:    op.asked.Folder,
		Project: op.project(),
		Target:  target,
	}
	host, err := newHost(op)
	if err != nil {
		return "", false, err
	}
	dryRun := op.asked.Op == "preview"
	events := make(chan engine.Event)
	drained := make(chan struct{})
	go op.drain(events, drained)
	engineContext := &engine.Context{Cancel: op.context, Events: events, BackendClient: noStacks{}}
	var snapshots *backend.SnapshotManager
	if !dryRun {
		snapshots = backend.NewSnapshotManager(op, manager, target.Snapshot, nil)
		engineContext.SnapshotManager = snapshots
	}
	options := engine.UpdateOptions{
		HostFactory:          host.factory,
		Parallel:             16,
		SkipPluginPreInstall: true,
		ExecKind:             "auto.inline",
	}
	switch op.asked.Op {
	case "destroy":
		_, _, err = engine.Destroy(info, engineContext, options, false)
	case "refresh":
		_, _, err = engine.Refresh(info, engineContext, options, false)
	default:
		_, _, err = engine.Update(info, engineContext, options, dryRun)
	}
	<-drained
	if snapshots != nil {
		err = errors.Join(err, snapshots.Close())
	}
	return salt, !dryRun, err
}

// secretsManager makes the manager of the backend's key: deriving it takes 150 ms, once for each salt.
func (op *operation) secretsManager() (secrets.Manager, string, error) {
	if op.asked.Salt != "" {
		manager, err := passphrase.GetPassphraseSecretsManager(op.asked.Passphrase, op.asked.Salt)
		return manager, "", err
	}
	salt, manager, err := passphrase.NewPassphraseSecretsManager(op.asked.Passphrase)
	return manager, salt, err
}

func (op *operation) target(manager secrets.Manager) (*deploy.Target, error) {
	name, err := tokens.ParseStackName(op.asked.Stack)
	if err != nil {
		return nil, err
	}
	values := config.Map{}
	for key, value := range op.asked.Config {
		parsed, err := config.ParseKey(key)
		if err != nil {
			return nil, err
		}
		values[parsed] = config.NewValue(value)
	}
	for key, value := range op.asked.Secrets {
		parsed, err := config.ParseKey(key)
		if err != nil {
			return nil, err
		}
		sealed, err := manager.Encrypter().EncryptValue(context.Background(), value)
		if err != nil {
			return nil, err
		}
		values[parsed] = config.NewSecureValue(sealed)
	}
	target := &deploy.Target{
		Name:         name,
		Organization: "organization",
		Config:       values,
		Decrypter:    manager.Decrypter(),
	}
	if len(bytes.TrimSpace(op.asked.Deployment)) == 0 || string(op.asked.Deployment) == "null" {
		return target, nil
	}
	var latest apitype.DeploymentV3
	if err := json.Unmarshal(op.asked.Deployment, &latest); err != nil {
		return nil, fmt.Errorf("the state cannot be read: %w", err)
	}
	op.kept = own(&latest)
	target.Snapshot, err = stack.DeserializeDeploymentV3(context.Background(), latest, keyring{op.asked.Passphrase})
	if err != nil {
		return nil, err
	}
	return target, target.Snapshot.VerifyIntegrity()
}

func (op *operation) project() *workspace.Project {
	return &workspace.Project{
		Name:    tokens.PackageName(op.asked.Project),
		Runtime: workspace.NewProjectRuntimeInfo(inlineRuntime, nil),
	}
}

// drain notes what the engine tells until it says that it is done.
func (op *operation) drain(events <-chan engine.Event, drained chan<- struct{}) {
	defer close(drained)
	for event := range events {
		switch event.Type {
		case engine.CancelEvent:
			return
		case engine.ResourcePreEvent:
			metadata := event.Payload().(engine.ResourcePreEventPayload).Metadata
			op.guard.Lock()
			op.steps = append(op.steps, [2]string{string(metadata.Op), string(metadata.URN)})
			op.guard.Unlock()
		case engine.DiagEvent:
			told := event.Payload().(engine.DiagEventPayload)
			if told.Severity != diag.Debug && !told.Ephemeral {
				op.tell(string(told.Severity), string(told.URN), told.Prefix+told.Message)
			}
		case engine.ErrorEvent:
			op.tell("error", "", event.Payload().(engine.ErrorEventPayload).Error)
		}
	}
}

func (op *operation) tell(severity, urn, text string) {
	text = strings.TrimSpace(colors.Never.Colorize(text))
	op.guard.Lock()
	defer op.guard.Unlock()
	op.messages = append(op.messages, message{Severity: severity, URN: urn, Text: text})
}

// Save keeps a deployment (backend.SnapshotPersister) in memory: the launcher gets the last one with the answer, and
// one before that only where a resource was made and another operation goes on, so that the first is never forgotten.
// What a launch makes last, or alone, is known from the run's record, and found by its labels.
func (op *operation) Save(deployment apitype.TypedDeployment) error {
	op.guard.Lock()
	op.latest = deployment.Deployment
	op.guard.Unlock()
	made := own(deployment.Deployment)
	if len(deployment.Deployment.PendingOperations) == 0 || subset(made, op.kept) {
		return nil
	}
	op.kept = made
	op.answers.write(answer{Event: "checkpoint", ID: op.asked.ID, Deployment: deployment.Deployment})
	if refused := <-op.saved; refused != "" {
		return errors.New(refused)
	}
	return nil
}

// own tells the resources that a provider made, by URN and id.
func own(deployment *apitype.DeploymentV3) map[string]bool {
	found := map[string]bool{}
	for _, each := range deployment.Resources {
		if each.Custom && !strings.HasPrefix(string(each.Type), "pulumi:") {
			found[string(each.URN)+" "+string(each.ID)] = true
		}
	}
	return found
}

func subset(some, all map[string]bool) bool {
	for each := range some {
		if !all[each] {
			return false
		}
	}
	return true
}

// A keyring opens the secrets of a state with the one key that its backend has.
type keyring struct{ passphrase string }

// OfType is called for the secrets manager that a state names.
func (keys keyring) OfType(_ context.Context, kind string, state json.RawMessage) (secrets.Manager, error) {
	if kind != passphrase.Type {
		return nil, fmt.Errorf("the secrets of this state are kept by %q, which the warm engine does not know", kind)
	}
	var told struct {
		Salt string `json:"salt"`
	}
	if err := json.Unmarshal(state, &told); err != nil {
		return nil, err
	}
	return passphrase.GetPassphraseSecretsManager(keys.passphrase, told.Salt)
}

// noStacks refuses references to other stacks: a launch gets what it needs of them as values.
type noStacks struct{}

var errNoStacks = errors.New("a run's program cannot refer to other stacks: it gets their outputs as values")

func (noStacks) GetStackOutputs(context.Context, string, func(error) error) (property.Map, error) {
	return property.Map{}, errNoStacks
}

func (noStacks) GetStackResourceOutputs(context.Context, string) (property.Map, error) {
	return property.Map{}, errNoStacks
}
