package blk

import "time"

// Counters of gates are their workers', plain, and copied between two rounds:
//
//	Stats ─▶ every worker at once: survey.fill ─▶ those that have come within surveyWait; of the others the last ones
//
// A worker that stands still for long, as while it registers a guest's memory, delays nobody who looks, and who looks never stops a worker: nothing is locked.

// surveyWait is how long Stats waits for workers, however many there are.
const surveyWait = 500 * time.Millisecond

// survey is a copy of what a trunk and its gates have counted. Its worker fills it before it is there; then it does not change any more.
type survey struct {
	there chan struct{} // closed when it is
	gates GateStats
	trunk trunkStats
}

func newSurvey() *survey { return &survey{there: make(chan struct{})} }

// ask has a survey made, one at a time: one that is not there yet has what its asker knows to be counted.
func (t *trunk) ask() *survey {
	for {
		if s := t.pending.Load(); s != nil {
			return s
		}
		s := newSurvey()
		if t.pending.CompareAndSwap(nil, s) {
			go t.host.Worker.Do(func() { t.fill(s) })
			return s
		}
	}
}

// fill makes a survey, on the worker.
func (t *trunk) fill(s *survey) {
	s.trunk = t.stats
	for _, g := range t.gates {
		g.collect(&s.gates)
	}
	t.latest.Store(s)
	t.pending.CompareAndSwap(s, nil)
	close(s.there)
}

// surveyed adds up what all trunks have counted.
func surveyed(trunks []*trunk, into *GateStats) (all trunkStats) {
	asked := make([]*survey, len(trunks))
	for i, t := range trunks {
		asked[i] = t.ask()
	}
	timer := time.NewTimer(surveyWait)
	defer timer.Stop()
	late := false
	for i, s := range asked {
		if !late {
			select {
			case <-s.there:
			case <-timer.C:
				late = true
			}
		}
		if s = trunks[i].latest.Load(); s != nil {
			into.Merge(&s.gates)
			all.backs += s.trunk.backs
			all.downs += s.trunk.downs
		}
	}
	return all
}
