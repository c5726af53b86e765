package main

import (
	"errors"
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
	cost := func(ports int, stopping func(*engine, *control.Controller, config.Config)) (start, stop uint64) {
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
		stopping(e, controller, *c)
		if len(e.ports) > 0 {
			t.Errorf("%d ports are left", len(e.ports))
		}
		runtime.ReadMemStats(&stopped)
		return started.Mallocs - before.Mallocs, stopped.Mallocs - started.Mallocs
	}
	for name, stopping := range map[string]func(*engine, *control.Controller, config.Config){
		"the daemon stops": func(e *engine, _ *control.Controller, _ config.Config) {
			if err := errors.Join(e.removeAll(t.Context())...); err != nil {
				t.Error(err)
			}
		},
		"a configuration has none": func(_ *engine, controller *control.Controller, c config.Config) {
			c.Ports = nil
			if _, err := controller.Apply(t.Context(), &c); err != nil {
				t.Error(err)
			}
		},
	} {
		const few, many = 50, 500
		fewStart, fewStop := cost(few, stopping)
		manyStart, manyStop := cost(many, stopping)
		t.Logf("%s: allocations: %d and %d for %d ports, %d and %d for %d", name, fewStart, fewStop, few, manyStart, manyStop, many)
		if most := uint64(2 * many / few); manyStart > most*fewStart || manyStop > most*fewStop {
			t.Errorf("%s: %d times as many ports cost %d times as much to start and %d times to stop", name, many/few, manyStart/fewStart, manyStop/fewStop)
		}
	}
}
