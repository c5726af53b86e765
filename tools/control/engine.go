// Package control is the operator's side of the daemon: it keeps an engine as its configuration says.
//
//	shuntd --config ─┐                 ┌─> running configuration ──> GET /v1/config
//	SIGHUP ──────────┼─> Controller ───┤
//	PUT, DELETE /v1 ─┘  ▲ reconcile    ├─> Engine: ports, networks, uplinks, one at a time
//	                    └── again, later ┴─> what failed, and is missing
//
// Reconciliation compares the configuration wanted with the one running and calls the engine for what differs; an
// object that did not change is not touched, so its guests notice nothing. The running configuration is advanced after
// every successful call, so at each moment it says what the engine holds, also when a step failed half-way.
//
// The package knows names and configuration, and no packet. What moves packets implements Engine; package controltest
// has a fake. Package api carries all this over a unix socket.
package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan/acl"
)

// What an engine's or controller's error may wrap. The API makes status codes of them.
var (
	// ErrNotFound says that no object has the name.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that something stands in the way which the caller can remove: a socket path or interface that
	// another process holds, a network that still has ports.
	ErrConflict = errors.New("conflict")
	// ErrRestart says that a part of the configuration is read at start only.
	ErrRestart = errors.New("restart required")
	// ErrClosed says that the daemon is stopping.
	ErrClosed = errors.New("shuntd is stopping")
)

// errFollows says that an object failed only because another one did, which has the reason.
var errFollows = fmt.Errorf("an object before it failed: %w", ErrConflict)

// because makes an error that is kind to errors.Is, and whose sentence does without kind's words.
func because(kind error, format string, args ...any) error {
	return &reason{fmt.Sprintf(format, args...), kind}
}

type reason struct {
	sentence string
	kind     error
}

func (r *reason) Error() string { return r.sentence }
func (r *reason) Unwrap() error { return r.kind }

// Engine is what the controller drives.
//
// The methods that change something are called by one goroutine at a time, and each one is atomic: when it returns an
// error, the engine holds what it held before, and nothing is left behind. Their errors are one sentence that names
// what is wrong and what to do; the object's kind and name are put in front by the controller. They return when the
// change is in force: after RemovePorts no worker looks at the guest's memory any more. The context bounds how long.
// Once it is in force there is no error: what of the state before could not be given back is in the log, since no
// second call could give it back either.
//
// The controller keeps this order, so an engine needn't guard against the opposite: an object is added after what it
// names and removed after what names it; names, sockets, interfaces, an uplink's VNIs and a network's addresses are
// unique at every moment, but for one: a static entry and a port of the same network may have the same MAC address
// between two calls, and then the port counts.
//
// The methods that report are called at any time, by many goroutines, and return copies.
type Engine interface {
	// AddUplink takes an interface or a peer's connection into service. An uplink is never updated: when it changes, its
	// networks are parked, it is removed and added, and they are brought back.
	AddUplink(ctx context.Context, u config.Uplink) error
	RemoveUplink(ctx context.Context, name string) error

	// Begin and End enclose the calls of one change that add and update networks and ports. What these do may wait for End to be in force.
	Begin()
	End()

	// AddNetwork makes a network without ports. UpdateNetwork changes everything but its name, while its ports go on.
	// The controller parks a network by an update that takes away uplink, VNI, flood list and entries: its ports keep
	// their connections and reach each other only.
	AddNetwork(ctx context.Context, n config.Network) error
	UpdateNetwork(ctx context.Context, n config.Network) error
	RemoveNetwork(ctx context.Context, name string) error

	// AddPort opens the port's socket. UpdatePort changes everything but what Replaces names, while the guest stays
	// connected. RemovePorts disconnects the guests and removes the sockets. again, for each: a port of the
	// same change serves the socket; otherwise what is kept for those who serve its guest later goes too. It returns an error for each that there is no
	// such port of, and nil for the others.
	AddPort(ctx context.Context, p config.Port) error
	UpdatePort(ctx context.Context, p config.Port) error
	RemovePorts(ctx context.Context, names []string, again []bool) []error

	// AddVolumeGroup makes a limit that volumes share; UpdateVolumeGroup changes it under them. RemoveVolumeGroup comes after its last volume is gone or
	// has left it.
	AddVolumeGroup(ctx context.Context, g config.VolumeGroup) error
	UpdateVolumeGroup(ctx context.Context, g config.VolumeGroup) error
	RemoveVolumeGroup(ctx context.Context, name string) error

	// AddVolume opens the volume's store and then its socket. A server that cannot be reached is no error: the volume waits for it, and its status says
	// why. What is wrong with the configuration is one, as is a file that cannot be opened. UpdateVolume changes everything but what
	// ReplacesVolume names, while the guest stays connected. RemoveVolumes disconnects the guests, removes the sockets and closes the stores, of all at the same time, since any
	// may be one that does not answer. It returns an error for each that there is no such volume of, and nil for the others.
	AddVolume(ctx context.Context, v config.Volume) error
	UpdateVolume(ctx context.Context, v config.Volume) error
	RemoveVolumes(ctx context.Context, names []string) []error
	// ResizeVolume asks the volume's store anew how large it is, and tells the guest. It is called at any time, by many goroutines, as are the next two.
	ResizeVolume(ctx context.Context, name string) error
	// CheckVolume connects to a store as AddVolume would, whether a volume of the configuration has it or not, reads what it is, and leaves.
	CheckVolume(ctx context.Context, s config.VolumeSource) (VolumeReport, error)
	// VolumeExports lists what the server of a source has to offer: the exports of NBD, the subsystems that NVMe's discovery names.
	VolumeExports(ctx context.Context, s config.VolumeSource) ([]VolumeExport, error)

	// Settle ends each change. What a daemon before this one left for the engine's objects and was not asked for until now can go, but for what is missing: that is
	// configured, and will be added yet.
	Settle(missing *config.Config)

	// Status tells the state of the engine's objects, each list in no particular order.
	Status() EngineStatus
	// Stats tells all counters. They only grow while their object exists.
	Stats() Stats
	// ACLHits tells by what policy a port's packets are judged, nil if by none, and how many packets each of its rules decided about, or wraps
	// ErrNotFound.
	ACLHits(port string) (*acl.Policy, acl.Hits, error)
	// FDB lists a network's forwarding table, or wraps ErrNotFound.
	FDB(network string) ([]FDBEntry, error)
	// Capture makes a capture, or wraps ErrNotFound or ErrRequest.
	Capture(o CaptureOptions) (Capture, error)

	// Close removes every object and frees what the engine holds. Nothing is called after it.
	Close(ctx context.Context) error
}

// Replaces reports whether a port changes so that its guest has to connect anew: the controller then removes and adds
// it, and does not update it.
func Replaces(was, will config.Port) bool {
	return was.Socket != will.Socket || was.Interface != will.Interface || was.Role != will.Role || was.Queues != will.Queues ||
		was.Coalesce != will.Coalesce
}
