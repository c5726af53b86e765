package vhostuser

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// A front-end that comes and goes until its lines are left out does not hide a warning behind that.
func TestWarningIsNotHidden(t *testing.T) {
	var out bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&out, nil)), "path")
	for range 1000 {
		l.write(slog.LevelInfo, "came and went")
	}
	for range 1000 {
		l.write(slog.LevelWarn, "broke the rules")
	}
	for text, most := range map[string]int{"came and went": 12, "broke the rules": 12} { // ten, and one a second
		if n := strings.Count(out.String(), text); n < 10 || n > most {
			t.Errorf("%d lines say that a front-end %s", n, text)
		}
	}
}
