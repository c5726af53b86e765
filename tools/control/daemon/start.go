package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
)

// running is a daemon that was started: what has to be closed, in order of its making.
type running struct {
	socket     *api.Listener
	metrics    net.Listener // nil: none
	controller *control.Controller
	api        *api.Server
	exporter   *http.Server
	failed     chan error   // of a server
	ended      <-chan error // of the engine
	news       <-chan struct{}
}

// errStopped says that a signal came before the daemon was ready.
var errStopped = errors.New("stopped before it was ready")

// begin is start with an ear for signals: where a hundred servers do not answer it takes a while. One that wants the daemon to stop ends it with errStopped,
// another one later with errSecond. SIGHUP is remembered, for the file that is being applied may be an old one.
func (d *daemon) begin(r *running, c *config.Config) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.start(ctx, r, c) }()
	for stopped := (time.Time{}); ; {
		select {
		case err := <-done:
			if !stopped.IsZero() {
				return errStopped // whatever it came to
			}
			return err
		case s := <-d.Signals:
			switch {
			case s == unix.SIGHUP:
				d.again = true
			case stopped.IsZero():
				d.log.Info("shuntd stops before it is ready", "signal", s.String())
				cancel()
				stopped = time.Now()
			case time.Since(stopped) >= oneSignal:
				return fmt.Errorf("%w (%s)", errSecond, s)
			}
		}
	}
}

// start brings the daemon up. What it cannot do without comes first, and what there is of it when that fails is in r, to be closed. An object of the configuration that
// fails is no such thing: the controller tries it again, beside the others.
func (d *daemon) start(ctx context.Context, r *running, c *config.Config) (err error) {
	if r.socket, err = api.Listen(c.Control.Socket, c.Control.Group); err != nil {
		return err
	}
	if c.Control.Metrics != "" {
		if r.metrics, err = net.Listen("tcp", c.Control.Metrics); err != nil {
			return fmt.Errorf("control.metrics: nothing can listen on %s: %w: choose another address", c.Control.Metrics, cause(err))
		}
	}
	engine, err := d.NewEngine(c, d.log)
	if err != nil {
		return err
	}
	if e, can := engine.(Ender); can {
		r.ended = e.Ended()
	}
	if e, can := engine.(Watcher); can {
		r.news = e.News()
	}
	r.controller = control.New(engine, c, d.log)
	if err = r.controller.Start(ctx, c); err != nil {
		return err
	}
	r.api = api.NewServer(r.controller, d.log)
	r.serve(func() error { return r.api.Serve(r.socket) })
	if r.metrics != nil {
		r.exporter = newExporter(r.controller, d.log)
		r.serve(func() error {
			if err := r.exporter.Serve(r.metrics); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve metrics: %w", err)
			}
			return nil
		})
	}
	return nil
}

// cause is what the kernel said, without the calls that it went through.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// serve runs a server, and tells when it ended by itself.
func (r *running) serve(server func() error) {
	go func() {
		if err := server(); err != nil {
			r.failed <- err
		}
	}()
}

// close undoes start, from any point of it, in drainTime and closeTime.
func (r *running) close() error {
	var errs []error
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if r.api != nil {
		errs = append(errs, r.api.Shutdown(drain))
	}
	if r.exporter != nil {
		errs = append(errs, r.exporter.Shutdown(drain))
	}
	if r.controller != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		errs = append(errs, r.controller.Close(ctx))
	}
	if r.metrics != nil {
		_ = r.metrics.Close() // again, where the exporter did it
	}
	if r.socket != nil { // last: while it answers, no other shuntd starts
		errs = append(errs, r.socket.Close())
	}
	return errors.Join(errs...)
}
