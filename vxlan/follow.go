package vxlan

import (
	"time"
)

// discovery is a VTEP that the worker met.
type discovery struct {
	uplink int // slot
	source address
}

// discover tells the control side about a VTEP. On the worker.
func (s *Switch) discover(u *uplink, source address) {
	select {
	case s.discovered <- discovery{u.slot, source}:
	default:
	}
}

// How often the control side looks after VTEPs by itself. News of the worker are taken together for a while, so that a flood
// of invented VTEPs costs a snapshot each 10 ms and no more.
const (
	gatherNews = 10 * time.Millisecond
	sweepVTEPs = 15 * time.Second
)

// follow brings what resolvers and the worker have found out into the snapshot.
func (s *Switch) follow() {
	defer close(s.done)
	sweep := time.NewTicker(sweepVTEPs)
	defer sweep.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.changed:
			s.mu.Lock()
			s.publish()
			s.mu.Unlock()
			continue // at once: frames may be waiting for a next hop
		case <-sweep.C:
			s.sweep()
			continue
		case d := <-s.discovered:
			s.welcome(d)
		}
		select {
		case <-s.stop:
			return
		case <-time.After(gatherNews):
		}
	}
}

// welcome enters the VTEPs that the worker met, as far as there is room.
func (s *Switch) welcome(d discovery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := false
	for range cap(s.discovered) {
		news = s.enter(d) || news
		select {
		case d = <-s.discovered:
			continue
		default:
		}
		break
	}
	if news {
		s.publish()
	}
}

// enter makes a record of a VTEP that the worker met.
func (s *Switch) enter(d discovery) bool {
	for name, u := range s.uplinks {
		if u.slot != d.uplink {
			continue
		}
		local := u.local().Address
		a := d.source.ip(local.Is4())
		if !local.IsValid() || a == local || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return false
		}
		if s.vteps.learned >= s.options.MaxLearnedVTEPs || s.vteps.used() >= s.options.MaxVTEPs {
			return false
		}
		return s.vteps.add(vtepKey{name, a}, false)
	}
	return false
}

// sweep forgets VTEPs that nobody configured and that have been silent for longer than any learned entry lives, so that their
// places can be taken by others.
func (s *Switch) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vteps.learned == 0 {
		return // and let the worker sleep
	}
	var tick uint32
	w := s.lanes[0].worker
	w.Do(func() { tick = s.tickOf(w) })
	s.forgetVTEPs(tick)
}

// forgetVTEPs is sweep at a given time. Every learned entry that leads to a VTEP was seen no later than the VTEP itself, so all those of a
// silent one have expired, and its index may mean another VTEP soon. But workers go on learning until they have seen the
// snapshot without the VTEP: one that spoke meanwhile stays.
func (s *Switch) forgetVTEPs(tick uint32) {
	if silent := s.hideSilent(tick); len(silent) > 0 {
		s.publish()
		s.grace()
		s.removeSilent(silent)
	}
}

// hideSilent takes the silent VTEPs out of the next snapshot, and returns when each spoke last, by index.
func (s *Switch) hideSilent(tick uint32) map[int]uint32 {
	var age uint32
	for _, n := range s.networks {
		age = max(age, n.learned[0].age)
	}
	silent := map[int]uint32{}
	for i := range s.vteps.records {
		r := &s.vteps.records[i]
		if seen := s.vtepSeen[i].Load(); r.uplink != "" && !r.configured && int32(tick-seen) > int32(age) {
			silent[i] = seen
			r.leaving = true
		}
	}
	return silent
}

// removeSilent frees the indices of those that are silent still, after the workers have passed a grace point.
func (s *Switch) removeSilent(silent map[int]uint32) {
	stays := false
	for i, seen := range silent {
		s.vteps.records[i].leaving = false
		if s.vtepSeen[i].Load() == seen {
			s.vteps.remove(i)
		} else {
			stays = true
		}
	}
	if stays {
		s.publish()
	}
}
