package main

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/vishvananda/netlink"
)

// awayVeth is an engine with a port whose interface it believes open, and which has another name now.
func awayVeth() (*engine, *veth) {
	e := &engine{log: slog.New(slog.DiscardHandler), ports: map[string]*port{}}
	v := &veth{engine: e, name: "no-such-link", index: 1 << 30, past: newCounters(), failed: errors.New("not looked at yet")}
	e.ports["c1"] = &port{config: config.Port{Name: "c1"}, device: v}
	return e, v
}

func (v *veth) isDown() bool {
	var s control.PortStatus
	v.status(&s)
	return s.State == control.StateDown
}

// An interface that was renamed is gone, as far as its port is concerned.
func TestInterfaceIsRenamed(t *testing.T) {
	e, v := awayVeth()
	e.lookAtLink(&netlink.LinkAttrs{Name: "other", Index: 77})
	if v.isDown() {
		t.Error("down by what became of another interface")
	}
	e.lookAtLink(&netlink.LinkAttrs{Name: "other", Index: 1 << 30})
	if !v.isDown() {
		t.Error("in service on an interface of another name")
	}
}

// The kernel ends its news when there were more than it keeps. They are asked for again, and what was missed is seen.
func TestNewsOfInterfacesBreaksOff(t *testing.T) {
	e, v := awayVeth()
	stop, done := make(chan struct{}), make(chan struct{})
	lost := make(chan netlink.LinkUpdate)
	close(lost)
	ended := make(chan struct{})
	go func() { e.followLinks(lost, done, stop); close(ended) }()
	await(t, "the port to be looked at", v.isDown)
	close(stop)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not stop")
	}
}
