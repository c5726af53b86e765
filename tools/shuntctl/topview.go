package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shuntio/shunt/tools/control"
)

// topView makes pictures of what the daemon says, of any size: the daemon in one line, workers, ports and uplinks, volumes, drops, and the keys.
type topView struct {
	order   sorting
	every   time.Duration
	scroll  int // objects above the first that is shown
	help    bool
	note    string // shown in the first line
	part    string // which objects there was room for, if not for all
	problem error  // the daemon does not answer

	last    snapshot
	have    int // snapshots so far: rates need two
	workers map[int]workerRates
	objects []rates
}

// workerRates is what a worker did in a second.
type workerRates struct{ rounds, sleeps, packets float64 }

func newTopView(order sorting, every time.Duration) *topView {
	return &topView{order: order, every: every}
}

// sorting is by what objects are sorted, and the value of a flag.
type sorting string

const (
	sortName        sorting = "name"
	sortReceived    sorting = "rx"
	sortTransmitted sorting = "tx"
	sortBits        sorting = "bits"
	sortDrops       sorting = "drops"
)

func (s *sorting) String() string { return string(*s) }

// Type names the flag's value in the help.
func (*sorting) Type() string { return "column" }

// Set takes one of the columns.
func (s *sorting) Set(text string) error {
	for _, known := range []sorting{sortName, sortReceived, sortTransmitted, sortBits, sortDrops} {
		if text == string(known) {
			*s = known
			return nil
		}
	}
	return errors.New("sort by name, rx, tx, bits or drops")
}

// update takes a new snapshot. After the daemon was started anew the old one says nothing.
func (v *topView) update(s snapshot) {
	if v.have > 0 && v.last.status.PID != s.status.PID {
		v.have = 0
	}
	v.workers, v.objects = map[int]workerRates{}, nil
	if v.have > 0 {
		v.objects = compareStats(v.last.stats, s.stats)
		seconds := s.stats.At.Sub(v.last.stats.At).Seconds()
		for _, is := range s.status.Workers {
			for _, was := range v.last.status.Workers {
				if was.ID == is.ID && seconds > 0 && is.Rounds >= was.Rounds {
					v.workers[is.ID] = workerRates{float64(is.Rounds-was.Rounds) / seconds, float64(is.Sleeps-was.Sleeps) / seconds,
						float64(is.Packets-was.Packets) / seconds}
				}
			}
		}
	}
	v.last, v.have = s, v.have+1
}

// mostDrops is how many lines there are for drops, and mostWorkers for workers.
const (
	mostDrops   = 5
	mostWorkers = 8
)

// text is a picture of so many columns, and lines; 0 lines: as many as it takes.
func (v *topView) text(width, height int) string {
	width = max(width, 40)
	lines := []string{v.title()}
	switch {
	case v.problem != nil:
		lines = append(lines, "", v.problem.Error())
	case v.have < 2:
		lines = append(lines, "", "looking ...")
	default:
		workers, volumes, drops := v.workerLines(), v.volumeLines(), v.dropLines()
		room := 0
		if height > 0 {
			room = max(3, height-len(lines)-len(workers)-len(volumes)-len(drops)-4)
		}
		lines = append(lines, workers...)
		lines = append(lines, "")
		lines = append(lines, v.objectLines(room)...)
		lines = append(lines, volumes...)
		if len(drops) > 0 {
			lines = append(lines, "")
			lines = append(lines, drops...)
		}
	}
	if height > 0 {
		lines = lines[:min(len(lines), height-1)]
		for len(lines) < height-1 {
			lines = append(lines, "")
		}
		lines = append(lines, v.keys())
	}
	for i, line := range lines {
		lines[i] = cut(line, width)
	}
	return strings.Join(lines, "\n")
}

// cut keeps a line within the width.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return strings.TrimRight(line, " ")
	}
	return string([]rune(line)[:width-1]) + "…"
}

func (v *topView) title() string {
	s := v.last.status
	if v.have == 0 {
		return "shuntd"
	}
	line := fmt.Sprintf("shuntd %s   up %s   %s   every %s", shortVersion(s.Version), span(v.last.stats.At.Sub(s.Started)), v.last.stats.At.Local().Format(time.TimeOnly), v.every)
	if n := len(s.Failed); n > 0 {
		line += fmt.Sprintf("   %d not as configured", n)
	}
	if v.note != "" {
		line += "   " + v.note
	}
	return line
}

// shortVersion leaves of a revision what tells it from others.
func shortVersion(v string) string {
	if revision, is := strings.CutPrefix(v, "devel-"); is {
		return "devel-" + revision[:min(len(revision), 9)]
	}
	return v
}

func (v *topView) keys() string {
	if v.help {
		return "sort: n name r rx t tx b bits d drops   up down: scroll   space: pause   + -: faster, slower   q: quit"
	}
	return fmt.Sprintf("%ssorted by %s   n r t b d: sort   ?: all keys   q: quit", v.part, v.order)
}

// bar is a share of eight places.
func bar(share float64) string {
	const full = 8
	n := int(min(max(share, 0), 1)*full + 0.5)
	return strings.Repeat("█", n) + strings.Repeat("░", full-n)
}

func (v *topView) workerLines() []string {
	lines := []string{"", fmt.Sprintf("%-7s %4s  %-16s %9s %9s %9s  %s", "WORKER", "CPU", "BUSY", "ROUNDS/S", "SLEEPS/S", "PPS", "FREE FRAMES")}
	list := v.last.status.Workers
	for i, w := range list {
		if i == mostWorkers-1 && len(list) > mostWorkers {
			lines = append(lines, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		cpu := fmt.Sprint(w.CPU)
		if w.CPU < 0 {
			cpu = "any"
		}
		r := v.workers[w.ID]
		lines = append(lines, fmt.Sprintf("%-7d %4s  %s %5.1f %% %9s %9s %9s  %d of %d", w.ID, cpu, bar(w.Busy), 100*w.Busy, rate(r.rounds), rate(r.sleeps),
			rate(r.packets), w.FreeFrames, w.Frames))
	}
	return lines
}

// stateOf is an object's state, as its status has it.
func (v *topView) stateOf(o object) string {
	switch o.kind {
	case control.KindPort:
		for _, p := range v.last.status.Ports {
			if p.Name == o.name {
				return string(p.State)
			}
		}
	case control.KindVolume:
		for _, d := range v.last.status.Volumes {
			if d.Name == o.name {
				return string(d.State)
			}
		}
	case control.KindUplink:
		for _, u := range v.last.status.Uplinks {
			if u.Name == o.name {
				return string(u.State)
			}
		}
	}
	return ""
}

// objectLines are ports and uplinks, sorted, from the scroll on: as many as there is room for; 0: all.
func (v *topView) objectLines(room int) []string {
	list := slices.DeleteFunc(slices.Clone(v.objects), func(r rates) bool { return r.kind != control.KindPort && r.kind != control.KindUplink })
	slices.SortStableFunc(list, func(a, b rates) int {
		switch v.order {
		case sortReceived:
			return cmp.Compare(b.rxPackets, a.rxPackets)
		case sortTransmitted:
			return cmp.Compare(b.txPackets, a.txPackets)
		case sortBits:
			return cmp.Compare(b.rxBits+b.txBits, a.rxBits+a.txBits)
		case sortDrops:
			return cmp.Compare(b.dropped, a.dropped)
		}
		return 0 // as the daemon has them: uplinks first, then by name
	})
	lines := []string{fmt.Sprintf("%-16s %-12s %8s %8s %8s %8s %8s", "PORT OR UPLINK", "STATE", "RX PPS", "RX BIT/S", "TX PPS", "TX BIT/S", "DROP/S")}
	if room == 0 {
		room, v.scroll = len(list)+1, 0
	}
	v.scroll = max(0, min(v.scroll, len(list)-(room-1)))
	shown := list[v.scroll:min(len(list), v.scroll+room-1)]
	for _, r := range shown {
		lines = append(lines, fmt.Sprintf("%-16s %-12s %8s %8s %8s %8s %8s", cut(r.name, 16), v.stateOf(r.object), rate(r.rxPackets), rate(r.rxBits),
			rate(r.txPackets), rate(r.txBits), rate(r.dropped)))
	}
	if v.part = ""; len(shown) < len(list) {
		v.part = fmt.Sprintf("%d to %d of %d   ", v.scroll+1, v.scroll+len(shown), len(list))
	}
	if len(list) == 0 {
		lines = append(lines, "none yet")
	}
	return lines
}

// volumes are all of them, those with most requests first.
func (v *topView) volumes() []rates {
	list := slices.DeleteFunc(slices.Clone(v.objects), func(r rates) bool { return r.volume == nil })
	requests := func(r rates) float64 { return r.volume.reads + r.volume.writes + r.volume.others }
	slices.SortStableFunc(list, func(a, b rates) int { return cmp.Compare(requests(b), requests(a)) })
	return list
}

// dropLines are the reasons with the most drops in the last second.
func (v *topView) dropLines() []string {
	type drop struct {
		of     object
		reason string
		rate   float64
	}
	var list []drop
	for _, r := range v.objects {
		for _, reason := range slices.Sorted(maps.Keys(r.drops)) {
			if r.drops[reason] > 0 {
				list = append(list, drop{r.object, reason, r.drops[reason]})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.SortStableFunc(list, func(a, b drop) int { return cmp.Compare(b.rate, a.rate) })
	lines := []string{fmt.Sprintf("%-8s %-16s %s", "DROP/S", "AT", "REASON")}
	for i, d := range list {
		if i == mostDrops-1 && len(list) > mostDrops {
			lines = append(lines, fmt.Sprintf("and %d more: shuntctl drops", len(list)-i))
			break
		}
		reason := d.reason
		if meaning := v.last.stats.Reasons[d.reason]; meaning != "" {
			reason += ": " + meaning
		}
		lines = append(lines, fmt.Sprintf("%-8s %-16s %s", rate(d.rate), cut(d.of.name, 16), reason))
	}
	return lines
}
