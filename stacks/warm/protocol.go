package main

import (
	"encoding/json"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
)

// protocolVersion is told at the start; launcher and server come from one distribution, so it has to be the same.
const protocolVersion = 1

// A request of the launcher. Every field but `op` and `id` belongs to the operations that say so.
type request struct {
	Op string `json:"op"` // up, preview, destroy, refresh; cancel, saved; stats; bye, before the connection is closed
	ID int64  `json:"id"` // of the operation that this starts, cancels or goes on with

	// up, preview, destroy, refresh
	Project    string            `json:"project"`
	Stack      string            `json:"stack"`
	Deployment json.RawMessage   `json:"deployment"` // the latest, as the state holds it; null for none
	Config     map[string]string `json:"config"`
	Secrets    map[string]string `json:"secrets"` // configuration too; it enters the state encrypted
	Passphrase string            `json:"passphrase"`
	Salt       string            `json:"salt"`     // of the backend's stacks; empty before the first
	Socket     string            `json:"socket"`   // where the launcher serves programs and providers
	Program    string            `json:"program"`  // the name by which the launcher knows the operation's program
	Attached   map[string]string `json:"attached"` // the sockets at which the launcher serves providers, by package
	Folder     string            `json:"folder"`   // the root of programs
	Plugins    map[string]string `json:"plugins"`  // package -> executable
	Environ    map[string]string `json:"environ"`  // the environment of plugins: credentials are in it

	// cancel
	Now bool `json:"now"` // do not wait for what a provider has begun

	// saved
	Error string `json:"error"`
}

// An answer to the launcher. `event` is ready, checkpoint, done, stats, leaving (it was asked to end), or fault.
type answer struct {
	Event      string                `json:"event"`
	ID         int64                 `json:"id,omitempty"`
	Protocol   int                   `json:"protocol,omitempty"`
	Version    string                `json:"version,omitempty"`
	Deployment *apitype.DeploymentV3 `json:"deployment,omitempty"` // checkpoint, done
	Salt       string                `json:"salt,omitempty"`       // done: that of the key, if it was made now
	Steps      [][2]string           `json:"steps,omitempty"`      // done: operation and URN of each step that was begun
	Messages   []message             `json:"messages,omitempty"`   // done: what the engine had to say
	Error      string                `json:"error,omitempty"`      // done: why it failed
	Cancelled  bool                  `json:"cancelled,omitempty"`
	Stats      *stats                `json:"stats,omitempty"`
}

// A message of the engine, a provider or a program.
type message struct {
	Severity string `json:"severity"`
	URN      string `json:"urn,omitempty"`
	Text     string `json:"text"`
}

// stats tell how much the server holds.
type stats struct {
	Operations  int64 `json:"operations"` // begun since the start
	InFlight    int   `json:"in_flight"`
	Goroutines  int   `json:"goroutines"`
	HeapBytes   int64 `json:"heap_bytes"`
	Descriptors int   `json:"descriptors"`
	Plugins     int   `json:"plugins"`
}
