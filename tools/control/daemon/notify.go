package daemon

import (
	"fmt"
	"log/slog"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/shuntio/shunt/tools/control"
)

// What systemd is told, sd_notify(3). Without a service manager all of it is nothing.
const (
	ready    = sd.SdNotifyReady
	stopping = sd.SdNotifyStopping
)

// reloading has the time too, as Type=notify-reload wants it.
func reloading() string { return sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec() }

func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("systemd is not told", "state", state, "error", err)
	}
}

// ready tells that the daemon serves, or does again.
func (d *daemon) ready(r *running) { d.tell(r, ready+"\n") }

// tell tells how much is not as configured, unless that is known and there is no other news.
func (d *daemon) tell(r *running, news string) {
	status := "STATUS=everything is as configured"
	if n := len(r.controller.Failed()); n == 1 {
		status = "STATUS=1 object is not as configured: see shuntctl status"
	} else if n > 1 {
		status = fmt.Sprintf("STATUS=%d objects are not as configured: see shuntctl status", n)
	}
	if status != d.told || news != "" {
		d.told = status
		notify(d.log, news+status)
	}
}

// watchdog tells systemd, twice per interval that it gave, that the engine still answers for its state. The function
// returned ends it.
func watchdog(c *control.Controller, log *slog.Logger) (stop func()) {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not served", "error", err)
	}
	if err != nil || interval <= 0 {
		return func() {}
	}
	done := make(chan struct{})
	ticker := time.NewTicker(interval / 2)
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				c.Status()
				notify(log, sd.SdNotifyWatchdog)
			}
		}
	}()
	return func() { close(done) }
}
