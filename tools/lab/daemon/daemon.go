// Package daemon runs shuntd as an operator would, in a namespace that plays
// its machine: a configuration file, the program, its control socket.
//
//	Build -> shuntd
//	New(config) -> Start: shuntd --config FILE, until GET /v1/status answers
//	                Stop: SIGTERM, exit status 0, nothing left behind
//	                Kill: SIGKILL; Start again takes over what it left
package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/lab/netlab"
)

const (
	// startTime bounds how long a daemon may take to answer, stopTime how long
	// to stop; both a hundred times what they take.
	startTime = 30 * time.Second
	stopTime  = 30 * time.Second
	// program is the package that is built.
	program = "github.com/shuntio/shunt/tools/shuntd"
)

// Build builds shuntd into a directory and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "shuntd")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, program)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shuntd: %w\n%s", err, out)
	}
	return path, nil
}

// Options of a daemon.
type Options struct {
	// Name in messages and of the files in Dir.
	Name string
	// Binary to run, from Build.
	Binary string
	// Namespace to run in; nil is the caller's.
	Namespace *netlab.Namespace
	// Dir for the configuration file and the control socket.
	Dir string
	// Config is the configuration in YAML, without its control section, which
	// is added.
	Config string
	// Args after --config FILE.
	Args []string
}

// Daemon is a shuntd that runs or ran.
type Daemon struct {
	o      Options
	client *api.Client
	log    string          // of earlier processes
	p      *netlab.Process // the last one; nil before the first
	ended  bool            // it was asked to end, or expected to
}

// New prepares a daemon; nothing runs before Start.
func New(o Options) *Daemon {
	d := &Daemon{o: o}
	d.client = api.NewClient(d.Socket())
	return d
}

// API is a client of the daemon's API.
func (d *Daemon) API() *api.Client { return d.client }

// Socket is the path of the control socket.
func (d *Daemon) Socket() string { return filepath.Join(d.o.Dir, d.o.Name+".sock") }

// ConfigFile is the path of the configuration file.
func (d *Daemon) ConfigFile() string { return filepath.Join(d.o.Dir, d.o.Name+".yaml") }

// SetConfig replaces the configuration that the next Start or Reload reads.
func (d *Daemon) SetConfig(config string) { d.o.Config = config }

// Start writes the configuration, starts shuntd and waits until it answers.
// A daemon that ends instead gives an *ExitError, one that runs without an object of
// its configuration a *PartError.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.launch(); err != nil {
		return fmt.Errorf("start %s: %w", d.o.Name, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("it does not answer after %v", startTime))
	defer cancel()
	for {
		status, err := d.client.Status(ctx)
		if err == nil && len(status.Failed) > 0 {
			return &PartError{status.Failed}
		}
		if err == nil {
			return nil
		}
		select {
		case <-d.p.Exited():
			d.ended = true // the caller has it as an error
			return d.exitError()
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w: %w\n%s", d.o.Name, context.Cause(ctx), err, d.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (d *Daemon) launch() error {
	if err := d.WriteConfig(); err != nil {
		return err
	}
	args := append([]string{"--config", d.ConfigFile()}, d.o.Args...)
	d.log, d.ended = d.Log(), false
	var err error
	d.p, err = netlab.Start(d.o.Namespace.Command(context.Background(), d.o.Binary, args...))
	return err
}

// WriteConfig writes the configuration where Start would.
func (d *Daemon) WriteConfig() error {
	text := d.o.Config
	if !strings.Contains("\n"+text, "\ncontrol:") {
		text += fmt.Sprintf("\ncontrol:\n  socket: %s\n", d.Socket())
	}
	return os.WriteFile(d.ConfigFile(), []byte(text), 0o600)
}

// ExitError says how a daemon ended that should not have.
type ExitError struct {
	// Status is the exit status, or -1 when a signal ended it.
	Status int
	// Log is what it wrote.
	Log string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("shuntd ended with status %d:\n%s", e.Status, e.Log)
}

// PartError says what a daemon that serves is still without.
type PartError struct{ Failed []control.Failure }

func (e *PartError) Error() string {
	lines := []string{"shuntd serves without"}
	for _, f := range e.Failed {
		lines = append(lines, fmt.Sprintf("%s %s: %s", f.Kind, f.Name, f.Error))
	}
	return strings.Join(lines, "\n")
}

func (d *Daemon) exitError() error {
	status, _ := d.p.Result()
	return &ExitError{status, d.Log()}
}

// Running says whether the daemon was started and has not ended.
func (d *Daemon) Running() bool { return d.p != nil && d.p.Running() }

// Died says whether the daemon ended though nobody asked it to.
func (d *Daemon) Died() bool { return d.p != nil && !d.ended && !d.p.Running() }

// PID is that of the daemon's process.
func (d *Daemon) PID() int { return d.p.PID() }

// Stop asks the daemon to stop and waits. Another exit status than 0, or a
// control socket left behind, is an error.
func (d *Daemon) Stop(ctx context.Context) error {
	if d.p == nil {
		return nil
	}
	if d.Died() {
		return fmt.Errorf("stop %s: %w", d.o.Name, d.exitError())
	}
	d.ended = true
	d.p.Signal(syscall.SIGTERM)
	select {
	case <-d.p.Exited():
	case <-ctx.Done():
		d.Kill()
		return fmt.Errorf("stop %s: %w", d.o.Name, ctx.Err())
	case <-time.After(stopTime):
		d.Kill()
		return fmt.Errorf("stop %s: it runs still %v after SIGTERM\n%s", d.o.Name, stopTime, d.Log())
	}
	if _, err := d.p.Result(); err != nil {
		return fmt.Errorf("stop %s: %w", d.o.Name, d.exitError())
	}
	if _, err := os.Lstat(d.Socket()); err == nil {
		return fmt.Errorf("stop %s: it left %s behind", d.o.Name, d.Socket())
	}
	return nil
}

// Kill kills the daemon as a crash would and waits until it is gone.
func (d *Daemon) Kill() {
	if d.p != nil {
		d.ended = true
		d.p.Kill()
	}
}

// Reload writes the configuration and sends SIGHUP. It does not wait: what
// changes shows in Status.
func (d *Daemon) Reload() error {
	if err := d.WriteConfig(); err != nil {
		return fmt.Errorf("reload %s: %w", d.o.Name, err)
	}
	d.p.Signal(syscall.SIGHUP)
	return nil
}

// Log is what the daemon wrote since New.
func (d *Daemon) Log() string {
	if d.p == nil {
		return d.log
	}
	return d.log + d.p.Output()
}

// Counters are those of one object.
func (d *Daemon) Counters(ctx context.Context, kind control.Kind, name string) (control.Counters, error) {
	stats, err := d.client.Stats(ctx, name)
	if err != nil {
		return control.Counters{}, err
	}
	for _, o := range stats.Objects {
		if o.Kind == kind && o.Name == name {
			return o.Counters, nil
		}
	}
	return control.Counters{}, fmt.Errorf("%s has no counters of %s %s", d.o.Name, kind, name)
}

// WaitPort waits until a port's guest is connected, or not.
func (d *Daemon) WaitPort(ctx context.Context, name string, want control.State) error {
	var last control.PortStatus
	for {
		status, err := d.client.Status(ctx)
		if err != nil {
			return err
		}
		for _, p := range status.Ports {
			if p.Name == name {
				last = p
			}
		}
		if last.State == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("port %s of %s is %q, not %q: %w", name, d.o.Name, last.State, want, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
