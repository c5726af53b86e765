package acl

import "sync/atomic"

// cell counts the packets that one rule decided about on one worker. Only that worker writes it.
type cell = atomic.Uint64

// line is how many cells keep two workers' apart, whatever the allocator puts beside them.
const line = 64 / 8

// fixed are the cells in front of the rules': that of Always, and that of Default.
const fixed = -Always

// newHits makes counters for each worker, but for rules that the previous policy has too: those keep theirs.
func newHits(rules []Rule, workers int, previous *Compiled) [][]*cell {
	kept := inherited(rules, previous)
	hits := make([][]*cell, workers)
	for w := range hits {
		hits[w] = make([]*cell, len(kept))
		fresh := 0
		for i, was := range kept {
			if was >= 0 && w < len(previous.hits) {
				hits[w][i] = previous.hits[w][was]
			} else {
				fresh++
			}
		}
		block := make([]cell, line+fresh+line)[line:]
		for i := range hits[w] {
			if hits[w][i] == nil {
				hits[w][i], block = &block[0], block[1:]
			}
		}
	}
	return hits
}

// inherited tells for each cell which one of the previous policy's it goes on with, -1 for none. A rule that is there twice is two.
func inherited(rules []Rule, previous *Compiled) []int {
	from := make([]int, fixed+len(rules))
	for i := range from {
		from[i] = -1
	}
	if previous == nil {
		return from
	}
	for i := range fixed {
		from[i] = i
	}
	places := map[Rule][]int{}
	for i, r := range previous.policy.Rules {
		places[r] = append(places[r], fixed+i)
	}
	for i, r := range rules {
		if p := places[r]; len(p) > 0 {
			from[fixed+i], places[r] = p[0], p[1:]
		}
	}
	return from
}

// Count counts packets that a rule, as Judge returned it, decided about. Only the worker itself calls it, at best once for a run of packets that
// have the same rule. A rule that the policy does not have is that of another Compiled, and counts nowhere.
func (c *Compiled) Count(worker, rule, packets int) {
	cells := c.hits[worker]
	if i := rule + fixed; uint(i) < uint(len(cells)) {
		cells[i].Store(cells[i].Load() + uint64(packets))
	}
}

// Hits are the packets that were decided about, summed over workers.
type Hits struct {
	Rules   []uint64 // by rule
	Default uint64   // no rule matched
	Always  uint64   // no policy judges them
}

// Hits reads the counters, at any time.
func (c *Compiled) Hits() Hits {
	sum := make([]uint64, fixed+len(c.policy.Rules))
	for _, cells := range c.hits {
		for i := range sum {
			sum[i] += cells[i].Load()
		}
	}
	return Hits{Rules: sum[fixed:], Default: sum[fixed+Default], Always: sum[fixed+Always]}
}
