package vhostuser

import (
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/shuntio/shunt/dataplane/shm"
)

// How long a client waits before it tries again: longer each time that nobody was there, and at most so long that a front-end that comes back
// is served within a second.
const (
	dialFirst = 10 * time.Millisecond
	dialMost  = time.Second
)

// Connect serves d to the front-end that listens on the socket, now or later, until Close. When the connection ends it is made again.
//
//	dial ──nobody?──▶ wait, twice as long each time
//	  ▲ └──connected─▶ session.run ──▶ ended
//	  └──────────────────────────────────┘
func Connect(o Options, d Device) (*Backend, error) {
	if err := shm.OpenSignals(); err != nil {
		return nil, err
	}
	if err := checkPath(o.Path); err != nil {
		return nil, err
	}
	if o.Mode != 0 || o.Owner != 0 || o.Group != 0 {
		return nil, fmt.Errorf("socket %s is the front-end's: its mode and owner are set there", o.Path)
	}
	b := newBackend(o, d)
	b.counts.State = Connecting
	b.stopped.Add(1)
	go b.connect()
	return b, nil
}

// connect runs one session after the other.
func (b *Backend) connect() {
	defer b.stopped.Done()
	wait, pace := dialFirst, servePace
	for {
		// The kernel answers at once: somebody listens and has room for us, or not.
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: b.path, Net: "unix"})
		useful := false
		if err != nil {
			b.unreached(err)
		} else {
			useful = b.serveOne(c)
		}
		if useful {
			wait = dialFirst
		}
		for !pace.take(time.Now()) && b.pause(pace.interval) {
		}
		if !b.pause(wait) {
			return
		}
		wait = min(2*wait, dialMost)
	}
}

// unreached notes why the front-end's socket could not be connected to, and logs it if that is news.
func (b *Backend) unreached(err error) {
	text := reason(err).Error()
	b.mu.Lock()
	news := b.counts.Unreached != text
	b.counts.Attempts++
	b.counts.Unreached = text
	b.mu.Unlock()
	if news {
		b.log.write(slog.LevelInfo, "vhost-user front-end is not there yet", "reason", text)
	}
}
