package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// print writes value as JSON, or what draw makes of it.
func (c *command) print(value any, draw func(*table)) error {
	if c.output == "json" {
		e := json.NewEncoder(c.out)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(value)
	}
	t := newTable(c.out)
	draw(t)
	return t.end()
}

// table aligns columns.
type table struct {
	w       *tabwriter.Writer
	out     io.Writer
	started bool
	err     error
}

func newTable(out io.Writer) *table {
	return &table{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), out: out}
}

// head begins a table of its own, a blank line below the last one.
func (t *table) head(columns ...any) {
	if t.started {
		t.keep(t.w.Flush())
		_, err := fmt.Fprintln(t.out)
		t.keep(err)
	}
	t.row(columns...)
}

// row writes one line. What is empty shows as a dash.
func (t *table) row(cells ...any) {
	t.started = true
	line := make([]string, len(cells))
	for i, cell := range cells {
		line[i] = or(fmt.Sprint(cell), "-")
	}
	_, err := fmt.Fprintln(t.w, strings.Join(line, "\t"))
	t.keep(err)
}

// line writes text that is no row.
func (t *table) line(format string, args ...any) {
	t.started = true
	t.keep(t.w.Flush())
	_, err := fmt.Fprintf(t.out, format+"\n", args...)
	t.keep(err)
}

func (t *table) keep(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *table) end() error {
	t.keep(t.w.Flush())
	return t.err
}

func or[T comparable](v, absent T) T {
	var zero T
	if v == zero {
		return absent
	}
	return v
}

// count shows a number in groups of three digits.
func count(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

// size shows bytes with a binary unit.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 { // which would print as 1024.0
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

// span shows a length of time in its two largest units.
func span(d time.Duration) string {
	d = d.Truncate(time.Second)
	switch days := d / (24 * time.Hour); {
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case days == 0:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", days, d%(24*time.Hour)/time.Hour)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
