package main

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// What a start and a stop cost grows as the number of ports does, and not as its square: ports come into force and go together.
func TestStartOfManyPorts(t *testing.T) {
	cost := func(ports int) (start, stop uint64) {
		dir := ringStates(t)
		e := newTestEngine(t, 1)
		c := &config.Config{Workers: config.Workers{Idle: config.IdleAdaptive, HugePages: config.ToggleAuto}, Control: config.Control{Socket: config.DefaultSocket},
			Networks: []config.Network{{Name: "blue", MTU: 1500, LearnLimit: 8, Age: config.Duration(time.Minute)}}}
		for i := range ports {
			p := testPort(fmt.Sprintf("p%d", i), dir, 0)
			p.MAC[3], p.MAC[4] = byte(i>>8), byte(i)
			p.AntiSpoof = true
			c.Ports = append(c.Ports, p)
		}
		controller := control.New(e, c, slog.New(slog.DiscardHandler))
		var before, started, stopped runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := controller.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&started)
		for _, err := range e.removeAll(t.Context()) {
			if err != nil {
				t.Error(err)
			}
		}
		runtime.ReadMemStats(&stopped)
		return started.Mallocs - before.Mallocs, stopped.Mallocs - started.Mallocs
	}
	const few, many = 50, 500
	fewStart, fewStop := cost(few)
	manyStart, manyStop := cost(many)
	t.Logf("allocations: %d and %d for %d ports, %d and %d for %d", fewStart, fewStop, few, manyStart, manyStop, many)
	if most := uint64(2 * many / few); manyStart > most*fewStart || manyStop > most*fewStop {
		t.Errorf("%d times as many ports cost %d times as much to start and %d times to stop", many/few, manyStart/fewStart, manyStop/fewStop)
	}
}
