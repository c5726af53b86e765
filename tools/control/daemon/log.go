package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// level is slog's, as a flag.
type level slog.Level

func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }

// Type names the flag's value in the help.
func (*level) Type() string { return "level" }

// Set takes the four levels by name.
func (l *level) Set(s string) error {
	for _, known := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, known.String()) {
			*l = level(known)
			return nil
		}
	}
	return errors.New("choose debug, info, warn or error")
}

// newLog returns a logger of one line a fact. Where the output is the journal, which has its own time and level, lines
// begin with a priority as sd-daemon(3) reads it.
func newLog(out io.Writer, level slog.Level) *slog.Logger {
	if f, ok := out.(*os.File); !ok || !isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(newJournal(out, level))
}

// isJournal reports whether f is the stream that systemd connected to the journal, which it names by device and inode.
func isJournal(f *os.File, stream string) bool {
	var st unix.Stat_t
	return stream != "" && unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journal is a handler for each priority.
type journal [4]slog.Handler

var priorities = [...]struct {
	level  slog.Level
	prefix string
}{{slog.LevelError, "<3>"}, {slog.LevelWarn, "<4>"}, {slog.LevelInfo, "<6>"}, {slog.LevelDebug - 1000, "<7>"}}

func newJournal(out io.Writer, level slog.Level) *journal {
	var j journal
	for i, p := range priorities {
		j[i] = slog.NewTextHandler(prefixed{p.prefix, out}, &slog.HandlerOptions{Level: level,
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
					return slog.Attr{}
				}
				return a
			}})
	}
	return &j
}

// prefixed writes each line, which slog hands over in one piece, behind its priority.
type prefixed struct {
	prefix string
	out    io.Writer
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.out.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

func (j *journal) Enabled(ctx context.Context, level slog.Level) bool {
	return j[0].Enabled(ctx, level)
}

func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	for i, p := range priorities {
		if r.Level >= p.level {
			return j[i].Handle(ctx, r)
		}
	}
	return nil
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	var with journal
	for i, h := range j {
		with[i] = h.WithAttrs(attrs)
	}
	return &with
}

func (j *journal) WithGroup(name string) slog.Handler {
	var with journal
	for i, h := range j {
		with[i] = h.WithGroup(name)
	}
	return &with
}
