package vhostuser

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// bucket allows burst events at once and one more every interval. What a front-end can cause as often as it likes goes
// through one. The zero time is full.
type bucket struct {
	burst    int
	interval time.Duration
	used     int
	last     time.Time
}

// take tells whether an event may happen now, and counts it if so.
func (b *bucket) take(now time.Time) bool {
	if back := int(now.Sub(b.last) / b.interval); back > 0 {
		b.used = max(0, b.used-min(back, b.burst))
		b.last = now
	}
	if b.used >= b.burst {
		return false
	}
	b.used++
	return true
}

// logger writes the lines of one socket, at most ten at once and one a second after; what was left out is counted in the next. Warnings are counted by
// themselves: who comes and goes all day does not hide with what says so what it does wrong.
type logger struct {
	to *slog.Logger

	mu     sync.Mutex
	limits [2]bucket // of what is worth knowing, and of warnings
	left   int
}

func newLogger(to *slog.Logger, path string) *logger {
	if to == nil {
		to = slog.Default()
	}
	return &logger{to: to.With("socket", path), limits: [2]bucket{{burst: 10, interval: time.Second}, {burst: 10, interval: time.Second}}}
}

func (l *logger) write(level slog.Level, text string, attrs ...any) {
	limit := &l.limits[0]
	if level >= slog.LevelWarn {
		limit = &l.limits[1]
	}
	l.mu.Lock()
	ok, left := limit.take(time.Now()), l.left
	if ok {
		l.left = 0
	} else {
		l.left++
	}
	l.mu.Unlock()
	if !ok {
		return
	}
	if left > 0 {
		attrs = append(attrs, "lines-left-out", left)
	}
	l.to.Log(context.Background(), level, text, attrs...)
}
