package main

import (
	"fmt"
	"time"

	"github.com/shuntio/shunt/tools/control"
)

// object tells counters of one object from those of others.
type object struct {
	kind control.Kind
	name string
}

// rates is what one object did in a second.
type rates struct {
	object
	rxPackets, rxBits, txPackets, txBits, dropped float64
	drops                                         map[string]float64
	more                                          map[string]float64
	volume                                        *volumeRates // of a volume
}

// compare makes rates of two answers of the daemon, in the order of the second. An object that is new, or whose counters began anew, has none yet.
func compareStats(was, is control.Stats) []rates {
	seconds := is.At.Sub(was.At).Seconds()
	before := map[object]control.ObjectStats{}
	for _, o := range was.Objects {
		before[object{o.Kind, o.Name}] = o
	}
	var all []rates
	for _, o := range is.Objects {
		r := rates{object: object{o.Kind, o.Name}, drops: map[string]float64{}, more: map[string]float64{}}
		old, known := before[r.object]
		if o.Volume != nil {
			r.volume = compareVolumes(old.Volume, o.Volume, seconds)
		}
		if !known || seconds <= 0 {
			all = append(all, r)
			continue
		}
		per := func(was, is uint64) float64 {
			if is < was {
				return 0
			}
			return float64(is-was) / seconds
		}
		r.rxPackets, r.txPackets = per(old.RxPackets, o.RxPackets), per(old.TxPackets, o.TxPackets)
		r.rxBits, r.txBits = 8*per(old.RxBytes, o.RxBytes), 8*per(old.TxBytes, o.TxBytes)
		for reason, n := range o.Drops {
			r.drops[reason] = per(old.Drops[reason], n)
			r.dropped += r.drops[reason]
		}
		for event, n := range o.More {
			r.more[event] = per(old.More[event], n)
		}
		all = append(all, r)
	}
	return all
}

// rate shows a number a second in at most six places: 0, 7, 999, 1.2 k, 34.5 M.
func rate(v float64) string {
	const units = " kMGT"
	if v < 0.5 {
		return "0"
	}
	if v < 999.5 {
		return fmt.Sprintf("%.0f", v)
	}
	unit := 0
	for v >= 999.95 && unit < len(units)-1 {
		v, unit = v/1000, unit+1
	}
	return fmt.Sprintf("%.1f %c", v, units[unit])
}

// interval is how long a live view waits between two looks, as a flag that has bounds.
type interval time.Duration

const (
	leastInterval = interval(100 * time.Millisecond)
	mostInterval  = interval(time.Hour)
)

func (i *interval) String() string { return time.Duration(*i).String() }

// Type names the flag's value in the help.
func (*interval) Type() string { return "duration" }

// Set takes a duration, or a number of seconds.
func (i *interval) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		if d, err = time.ParseDuration(s + "s"); err != nil {
			return fmt.Errorf("%q is no duration such as 2s", s)
		}
	}
	if interval(d) < leastInterval || interval(d) > mostInterval {
		return fmt.Errorf("%s is not between %s and %s", d, time.Duration(leastInterval), time.Duration(mostInterval))
	}
	*i = interval(d)
	return nil
}
