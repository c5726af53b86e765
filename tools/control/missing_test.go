package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

const fixed = `
uplinks: [{name: up0, interface: eth0}, {name: up1, interface: eth1}]
networks: [{name: blue, uplink: up0, vni: 7}, {name: red, uplink: up1, vni: 8}]
ports: [{name: p1, network: blue, socket: /p1, mac: 52:54:00:00:00:01}, {name: p2, network: red, socket: /p2, mac: 52:54:00:00:00:02}]
volumes: [{name: v1, socket: /v1, source: 'file:///v1'}, {name: v2, socket: /v2, source: 'file:///v2'}]
`

// host is a controller on a fake engine, of which some additions fail. It lives in a bubble of its own time.
type host struct {
	*control.Controller
	*controltest.Engine
	t    *testing.T
	log  bytes.Buffer
	mu   sync.Mutex
	away map[string]string // by name, the reason why it cannot be added
}

// goes has an object fail for a reason; comes has it, or all, fail no more.
func (h *host) goes(name, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away[name] = why
}

func (h *host) comes(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		delete(h.away, name)
	}
	if names == nil {
		clear(h.away)
	}
}

func newHost(t *testing.T, text string, away map[string]string) *host {
	t.Helper()
	h := &host{Engine: &controltest.Engine{}, t: t, away: away}
	h.Fail = func(method, name string) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if why, is := h.away[name]; is && strings.HasPrefix(method, "Add") {
			return errors.New(why)
		}
		return nil
	}
	c := parse(t, text)
	h.Controller = control.New(h.Engine, c, slog.New(slog.NewTextHandler(&h.log, nil)))
	if err := h.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Controller.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if broken := h.Broken(); broken != nil {
			t.Error(broken)
		}
	})
	return h
}

// failed wants these objects in the status, each with its reason; one that is tried again has an asterisk.
func (h *host) failed(want ...string) {
	h.t.Helper()
	var got []string
	for _, f := range h.Controller.Status().Failed {
		s := f.Name + ": " + f.Error
		if f.Retry != nil {
			s += " *"
		}
		got = append(got, s)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		h.t.Errorf("after %s the status tells of\n%s\nwant\n%s", h.t.Name(), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (h *host) called(want string) {
	h.t.Helper()
	if got := strings.Join(h.Calls(), ", "); got != want {
		h.t.Errorf("called\n%s\nwant\n%s", got, want)
	}
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What fails at a start holds up nothing else. It is tried again, later and later, with what depends on it, and each reason is logged once.
func TestMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gone, follows = "no such interface", "its uplink up1 is not there *"
		h := newHost(t, fixed, map[string]string{"up1": gone, "v1": "no such file"})
		h.called("AddUplink up0, AddUplink up1, AddNetwork blue, AddPort p1, AddVolume v1, AddVolume v2")
		h.failed("up1: "+gone+" *", "red: "+follows, "p2: its network red is not there *", "v1: no such file *")
		if m := h.Missing(); len(m.Uplinks) != 1 || len(m.Networks) != 1 || len(m.Ports) != 1 || len(m.Volumes) != 1 {
			t.Errorf("the engine was told that %+v is missing", m)
		}
		began := time.Now()
		var tries []time.Duration
		for time.Since(began) < 2*time.Minute {
			pass(500 * time.Millisecond)
			if h.Calls() != nil {
				tries = append(tries, time.Since(began))
			}
		}
		if got := fmt.Sprint(tries); got != "[1s 3s 7s 15s 31s 1m1s 1m31s]" {
			t.Errorf("tried at %s", got)
		}
		retry := h.Controller.Status().Failed[0].Retry
		if !retry.Since.Equal(began) || retry.Tries != 8 || retry.Next.Sub(began) != 121*time.Second {
			t.Errorf("of which the status tells %+v", retry)
		}
		h.goes("v1", "it is a directory")
		pass(time.Minute)
		if log := h.log.String(); strings.Count(log, "level=ERROR") != 3 || strings.Count(log, `error="it is a directory"`) != 1 ||
			strings.Count(log, "level=WARN") != 2 {
			t.Errorf("the log:\n%s", log)
		}
		h.Calls()

		h.comes("up1")
		pass(time.Until(h.Controller.Status().Failed[0].Retry.Next))
		h.called("AddUplink up1, AddNetwork red, AddPort p2, AddVolume v1")
		h.failed("v1: it is a directory *")
		pass(time.Second) // since something came of it
		h.called("AddVolume v1")
		h.comes("v1")
		pass(2 * time.Second)
		h.failed()
		if m := h.Missing(); !reflect.DeepEqual(*m, config.Config{}) {
			t.Errorf("the engine was told that %+v is missing", m)
		}
		h.Calls()
		pass(time.Hour)
		h.called("")
		checkHeld(t, h.Engine, parse(t, fixed))
	})
}

// What an operator does with an object that is missing ends that it is tried, and what he adds in its place stays.
func TestMissingAndOperator(t *testing.T) {
	edit := func(h *host, change func(c *config.Config)) error {
		_, err := h.Edit(h.t.Context(), func(running *config.Config) (*config.Config, error) {
			c := *running
			c.Uplinks, c.Networks, c.Ports, c.Volumes = slices.Clone(c.Uplinks), slices.Clone(c.Networks), slices.Clone(c.Ports), slices.Clone(c.Volumes)
			change(&c)
			return &c, nil
		})
		return err
	}
	const up, red, p2, v1 = "up1: gone *", "red: its uplink up1 is not there *", "p2: its network red is not there *", "v1: gone *"
	for name, operator := range map[string]func(h *host){
		"delete": func(h *host) {
			if _, err := h.Delete(h.t.Context(), control.KindUplink, "up1"); !errors.Is(err, control.ErrConflict) {
				h.t.Errorf("a missing uplink that missing networks need was deleted: %v", err)
			}
			if _, err := h.Delete(h.t.Context(), control.KindVolume, "v1"); err != nil {
				h.t.Error(err)
			}
			if len(h.Missing().Volumes) != 0 {
				h.t.Error("the engine was not told that a volume was deleted")
			}
			pass(time.Minute)
			h.failed(up, red, p2)
		},
		"change": func(h *host) {
			if err := edit(h, func(c *config.Config) {
				c.Volumes = append(c.Volumes, config.Volume{Name: "v1", Socket: "/v1", Source: "file:///other"})
			}); err == nil {
				h.t.Error("the change went well")
			}
			h.Calls()
			pass(time.Minute)
			for _, call := range h.Calls() {
				if call == "AddVolume v1" {
					h.t.Error("what an operator was told is tried again")
				}
			}
			h.failed("v1: gone", up, red, p2)
		},
		"mend": func(h *host) {
			h.comes("up1")
			if err := edit(h, func(c *config.Config) { c.Uplinks = append(c.Uplinks, config.Uplink{Name: "up1", Interface: "eth9"}) }); err != nil {
				h.t.Error(err)
			}
			pass(time.Second) // not later, since others may have waited for it
			h.failed(v1)
			if uplinks, _, _ := h.Held(); uplinks["up1"].Interface != "eth9" {
				h.t.Error("what an operator changed was undone")
			}
		},
		"conflict": func(h *host) {
			if err := edit(h, func(c *config.Config) {
				c.Uplinks = append(c.Uplinks, config.Uplink{Name: "new", Interface: "eth1"})
				c.Ports = append(c.Ports, config.Port{Name: "p9", Network: "blue", Socket: "/v1", MAC: config.MAC{2: 9}})
			}); err != nil {
				h.t.Error(err)
			}
			h.comes()
			pass(time.Minute)
			h.failed("up1: uplink new still holds what it needs *", red, p2, "v1: port p9 still has its socket /v1 *")
			if _, err := h.Delete(h.t.Context(), control.KindUplink, "new"); err != nil {
				h.t.Error(err)
			}
			pass(time.Second)
			h.failed("v1: port p9 still has its socket /v1 *")
		},
		"network's place": func(h *host) {
			h.comes("up1")
			if err := edit(h, func(c *config.Config) {
				c.Uplinks = append(c.Uplinks, config.Uplink{Name: "up1", Interface: "eth1"})
				c.Networks = append(c.Networks, config.Network{Name: "new", Uplink: "up1", VNI: 8})
			}); err != nil {
				h.t.Error(err)
			}
			h.Calls()
			pass(time.Minute)
			h.failed("red: network new still has its place on uplink up1 *", p2, v1)
			if slices.Contains(h.Calls(), "UpdateNetwork new") {
				h.t.Error("what an operator added was parked meanwhile")
			}
		},
		"file": func(h *host) {
			if err := edit(h, func(c *config.Config) {
				c.Volumes = append(c.Volumes, config.Volume{Name: "v9", Socket: "/v9", Source: "file:///v1"})
			}); err != nil {
				h.t.Error(err)
			}
			h.comes()
			pass(time.Minute)
			h.failed("v1: volume v9 still has its file *")
		},
		"apply without": func(h *host) {
			if _, err := h.Apply(h.t.Context(), parse(h.t, "networks: [{name: blue}]\n")); err != nil {
				h.t.Error(err)
			}
			h.Calls()
			h.comes()
			pass(time.Minute)
			h.called("")
			h.failed()
		},
		"apply with": func(h *host) {
			pass(40 * time.Second)
			if _, err := h.Apply(h.t.Context(), parse(h.t, fixed)); err == nil {
				h.t.Error("all is well")
			}
			h.failed(up, red, p2, v1)
			h.comes()
			pass(time.Second)
			h.failed()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, fixed, map[string]string{"up1": "gone", "v1": "gone"})
				operator(h)
				if err := config.Check(with(h.Config())); err != nil {
					t.Errorf("what runs is no good configuration: %v", err)
				}
				checkHeld(t, h.Engine, h.Config())
			})
		})
	}
}

func with(c *config.Config) *config.Config { copied := *c; return &copied }

// What a whole configuration could not replace runs as it did, and no attempt takes it away again.
func TestFailedReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fixed, nil)
		failed := map[string]bool{}
		h.Fail = func(method, name string) error {
			if (name == "v1" || name == "up1") && strings.HasPrefix(method, "Add") && !failed[name] {
				failed[name] = true
				return errors.New("no")
			}
			return nil
		}
		want := strings.NewReplacer("file:///v1", "file:///none", "eth1", "eth9").Replace(fixed)
		if _, err := h.Apply(t.Context(), parse(t, want)); err == nil {
			t.Fatal("all is well")
		}
		h.Calls()
		pass(time.Minute)
		h.called("")
		h.failed("v1: no (it is as it was before)", "up1: no (it is as it was before)")
	})
}

// One that is lost is tried again, with its networks, which were parked meanwhile.
func TestLostUplink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fixed, map[string]string{})
		h.goes("up1", "gone")
		want := parse(t, strings.Replace(fixed, "eth1", "eth9", 1))
		if _, err := h.Apply(t.Context(), want); err == nil {
			t.Fatal("all is well")
		}
		h.Calls()
		h.comes()
		pass(time.Second)
		h.called("AddUplink up1, UpdateNetwork red")
		h.failed()
		checkHeld(t, h.Engine, want)
	})
}

// stuck is an engine whose additions take as long as they may.
type stuck struct {
	*controltest.Engine
	begun chan struct{}
}

func (s stuck) AddVolume(ctx context.Context, v config.Volume) error {
	if err := s.Engine.AddVolume(ctx, v); err != nil {
		return err
	}
	s.begun <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// An end waits for no attempt, whether it is under way or to come.
func TestCloseWhileRetrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var there atomic.Bool
		e := &controltest.Engine{Fail: func(string, string) error {
			if there.Load() {
				return nil
			}
			return errors.New("no")
		}}
		c := parse(t, fixed)
		s := stuck{e, make(chan struct{})}
		h := control.New(s, c, slog.New(slog.DiscardHandler))
		if err := h.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		there.Store(true)
		<-s.begun
		began := time.Now()
		if err := h.Close(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		e.Calls()
		pass(time.Hour)
		if calls := e.Calls(); calls != nil || len(e.Broken()) > 0 {
			t.Errorf("after the end: %v %v", calls, e.Broken())
		}
	})
}

// TestConverge starts a random configuration of which calls fail at random, and has an operator meddle meanwhile. No attempt takes anything from anybody, and
// when nothing fails any more, all that is left over is what the operator stands in the way of.
func TestConverge(t *testing.T) { checkApart(t, converge) }

func converge(t *rapid.T) {
	e := &controltest.Engine{}
	want := drawConfig(t)
	if err := config.Check(want); err != nil {
		t.Fatal(err)
	}
	c := start(e)
	defer func() { _ = c.Close(context.Background()) }()
	failures := 0
	e.Fail = func(method, name string) error {
		if failures > 0 && rapid.IntRange(1, 100).Draw(t, method) <= failures {
			return errors.New("no")
		}
		return nil
	}
	failures = rapid.SampledFrom([]int{20, 60, 100}).Draw(t, "failures")
	if err := c.Start(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	meddled := false
	for range rapid.IntRange(0, 4).Draw(t, "rounds") {
		failures = rapid.SampledFrom([]int{0, 20, 60}).Draw(t, "failures")
		if rapid.Bool().Draw(t, "meddle") {
			meddled = true
			next := drawConfig(t)
			_, err := c.Edit(context.Background(), func(running *config.Config) (*config.Config, error) {
				next.Workers, next.Control = running.Workers, running.Control
				return next, nil
			})
			if failed := (*control.FailedError)(nil); err != nil && !errors.As(err, &failed) {
				t.Fatal(err)
			}
		}
		settled(t, e, c)
	}
	failures = 0
	settled(t, e, c)
	settled(t, e, c)
	if meddled {
		return
	}
	if left := c.Failed(); len(left) > 0 {
		t.Fatalf("nothing fails, and yet it tells of %+v", left)
	}
	checkHeld(t, e, want)
}

// settled lets an attempt be made, and judges it.
func settled(t *rapid.T, e *controltest.Engine, c *control.Controller) {
	before, failed := c.Config(), c.Failed()
	e.Calls()
	pass(30 * time.Second)
	for _, call := range e.Calls() {
		_, name, _ := strings.Cut(call, " ")
		if !slices.ContainsFunc(failed, func(f control.Failure) bool { return f.Name == name && f.Retry != nil }) || strings.HasPrefix(call, "Remove") {
			t.Fatalf("an attempt at what is missing called %s", call)
		}
	}
	after := c.Config()
	checkHeld(t, e, after)
	if err := config.Check(with(after)); err != nil {
		t.Fatalf("what runs is no good configuration: %v", err)
	}
	for _, u := range before.Uplinks {
		if !contains(after.Uplinks, u) {
			t.Fatalf("uplink %s was touched", u.Name)
		}
	}
	for _, f := range c.Failed() {
		if f.Retry == nil && f.Error == "" || f.Retry != nil && f.Retry.Next.Before(time.Now()) {
			t.Fatalf("it tells of %+v %+v", f, f.Retry)
		}
	}
}
