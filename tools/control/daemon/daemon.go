// Package daemon is the frame around an engine: flags, configuration, signals, systemd, log and metrics. It knows no
// packet; tools/shuntd gives it the engine.
//
//	flags ─> configuration ─> control socket, metrics listener, engine ─> its objects ─> READY
//	            │ --check: exit          │                                  └ one fails: logged, and tried again by the controller
//	            └ refused: exit 2        └ something is in the way: all undone, exit 2
//	SIGHUP ─> read the file again, apply; what fails is logged, the rest runs on <──────┤
//	SIGTERM, SIGINT ─> STOPPING ─> API, metrics, engine closed in bounded time: exit 0 <┘
//	   │                  └ another one, 3 s later: exit 1 at once
//	   └ before READY: the rest of the configuration is left, all undone, exit 0
//
// Exit status 2 says that the operator has something to change: a flag, the file, the host. Status 1 is a failure while
// running.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// The exit statuses.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// DefaultConfig is where the configuration is unless --config says otherwise.
const DefaultConfig = "/etc/shunt/shunt.yaml"

// extraThreads is what GOMAXPROCS has beyond one for each worker: one for the control side and one for the collector,
// as a worker never gives its own away. Go would choose 1 under a mask of one core, and the control side would starve.
const extraThreads = 2

// Options of a daemon.
type Options struct {
	Args   []string  // without the program's name
	Stdout io.Writer // nil: os.Stdout
	Stderr io.Writer // nil: os.Stderr
	// NewEngine makes an engine that holds no object yet, from the configuration's workers.
	NewEngine func(c *config.Config, log *slog.Logger) (control.Engine, error)
	// Check tells what is wrong with a configuration that keeps all rules, an error for each object. For --check; nil: nothing more is looked at.
	Check func(c *config.Config) []error
	// Signals are acted upon as they come. Nil: those that the process gets.
	Signals <-chan os.Signal
}

// An Ender is an engine that can come to an end by itself. The daemon stops when the channel yields, which it does at
// most once.
type Ender interface {
	Ended() <-chan error
}

// A Watcher is an engine that tells when something came to the host that an object may have failed without, as an interface.
type Watcher interface {
	News() <-chan struct{}
}

// Main runs the daemon until it is told to stop, and returns its exit status.
func Main(o Options) int {
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Signals == nil {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
		defer signal.Stop(signals)
		o.Signals = signals
	}
	d := &daemon{Options: o}
	status := ExitOK
	cmd := d.command(&status)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintf(o.Stderr, "shuntd: %v\nRun shuntd --help for the flags.\n", err)
		return ExitUsage
	}
	return status
}

type daemon struct {
	Options
	configFile string
	check      bool
	level      level
	log        *slog.Logger
	again      bool   // SIGHUP came before the daemon was ready
	told       string // the service manager, of what is as configured
}

func (d *daemon) command(status *int) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shuntd",
		Short: "shunt's offload daemon",
		Long: "shuntd takes the IO of virtual machines and containers past the kernel: packets between their vhost-user sockets or veths and the network,\n" +
			"requests to disks between vhost-user sockets and storage servers or files.\n" +
			"SIGHUP reads the configuration again; what did not change in it is not touched. SIGTERM stops cleanly.",
		Version: control.Version(), Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		Run: func(*cobra.Command, []string) { *status = d.run() },
	}
	cmd.SetArgs(d.Args)
	cmd.SetOut(d.Stdout)
	cmd.SetErr(d.Stderr)
	cmd.SetVersionTemplate("shuntd {{.Version}}\n")
	cmd.CompletionOptions.DisableDefaultCmd = true
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&d.configFile, "config", DefaultConfig, "file of the configuration, YAML")
	flags.BoolVar(&d.check, "check", false, "check the configuration and exit: 0 when it is good, 2 when not")
	flags.Var(&d.level, "log-level", "least level that is logged: debug, info, warn or error")
	return cmd
}

func (d *daemon) run() int {
	d.log = newLog(d.Stderr, slog.Level(d.level))
	c, err := config.Read(d.configFile)
	if err != nil {
		if invalid := (*config.Error)(nil); !errors.As(err, &invalid) { // whose lines begin with file, line and column
			err = fmt.Errorf("shuntd: %w", err)
		}
		fmt.Fprintln(d.Stderr, err)
		return ExitUsage
	}
	if d.check && d.Check != nil {
		if wrong := d.Check(c); len(wrong) > 0 {
			for _, err := range wrong {
				fmt.Fprintf(d.Stderr, "%s: %v\n", d.configFile, err)
			}
			return ExitUsage
		}
	}
	if d.check {
		fmt.Fprintf(d.Stdout, "%s: the configuration is good\n", d.configFile)
		return ExitOK
	}
	runtime.GOMAXPROCS(max(len(c.Workers.CPUs), 1) + extraThreads)
	var failure error
	r := &running{failed: make(chan error, 2)}
	switch err := d.begin(r, c); {
	case err == nil:
		d.log.Info("shuntd is ready", "version", control.Version(), "socket", c.Control.Socket, "uplinks", len(c.Uplinks),
			"networks", len(c.Networks), "ports", len(c.Ports), "volumes", len(c.Volumes), "failed", len(r.controller.Failed()))
		if failure = d.serve(r); failure != nil {
			d.log.Error("shuntd failed", "error", failure)
		}
	case errors.Is(err, errSecond):
		d.log.Error("shuntd did not stop cleanly", "error", err)
		return ExitFailed
	case !errors.Is(err, errStopped):
		d.refuse(errors.Join(err, r.close()))
		return ExitUsage
	}
	if err := d.stop(r); err != nil {
		d.log.Error("shuntd did not stop cleanly", "error", err)
		failure = err
	}
	if failure != nil {
		return ExitFailed
	}
	d.log.Info("shuntd stopped")
	return ExitOK
}

// refuse tells why there is no start, in a sentence. It is not for a log, but for whoever is to change something; only the journal gets it with its level.
func (d *daemon) refuse(err error) {
	if _, is := d.log.Handler().(*journal); is {
		d.log.Error("shuntd does not start", "error", err)
	} else {
		fmt.Fprintf(d.Stderr, "shuntd: %v\n", err)
	}
}

// serve acts on signals until one of them, or a failure, ends it.
func (d *daemon) serve(r *running) error {
	stopWatchdog := watchdog(r.controller, d.log)
	defer stopWatchdog()
	d.ready(r)
	if d.again {
		d.reload(r)
	}
	for {
		select {
		case s := <-d.Signals:
			if s != unix.SIGHUP {
				d.log.Info("shuntd stops", "signal", s.String())
				return nil
			}
			d.reload(r)
		case <-r.controller.Changed():
			d.tell(r, "")
		case <-r.news:
			r.controller.Nudge()
		case err := <-r.failed:
			return err
		case err := <-r.ended:
			return fmt.Errorf("the engine ended: %w", err)
		}
	}
}

// reload applies the file again. Whatever is wrong with it, the daemon runs on.
func (d *daemon) reload(r *running) {
	notify(d.log, reloading())
	defer d.ready(r)
	c, err := config.Read(d.configFile)
	if err != nil {
		d.log.Error("the configuration is refused and the running one kept", "error", err)
		return
	}
	changes, err := r.controller.Apply(context.Background(), c)
	var failed *control.FailedError // whose parts the controller has logged
	if err != nil && !errors.As(err, &failed) {
		d.log.Error("the configuration is refused and the running one kept", "error", err)
		return
	}
	count := map[control.Action]int{}
	for _, change := range changes {
		count[change.Action]++
	}
	attrs := []any{}
	for _, a := range []control.Action{control.Created, control.Updated, control.Replaced, control.Removed, control.Unchanged, control.Failed} {
		attrs = append(attrs, string(a), count[a])
	}
	d.log.Info("the configuration was read again", attrs...)
}

// How long a stop may take: requests under way, then the engine with its guests.
const (
	drainTime = 5 * time.Second
	closeTime = 10 * time.Second
)

// oneSignal is how long further signals to stop are taken for the first one. timeout(1) signals its child and then its
// process group, a terminal's Ctrl-C reaches the whole group and may be passed on too; a stop takes some tens of milliseconds.
const oneSignal = 3 * time.Second

// errSecond says that somebody has waited long enough.
var errSecond = errors.New("a second signal ended the stop before it was done")

// stop closes everything, in bounded time. A signal of somebody who has waited ends it.
func (d *daemon) stop(r *running) error {
	notify(d.log, stopping)
	done := make(chan error, 1)
	go func() { done <- r.close() }()
	for begin := time.Now(); ; {
		select {
		case err := <-done:
			return err
		case s := <-d.Signals:
			if s != unix.SIGHUP && time.Since(begin) >= oneSignal {
				return fmt.Errorf("%w (%s)", errSecond, s)
			}
		}
	}
}
