package main

import (
	"errors"
	"testing"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// A port that is refused leaves nothing open, its rings' state least of all: when what stood in its way is gone, it can be added.
func TestRefusedPortCanBeAdded(t *testing.T) {
	dir := ringStates(t)
	e := newTestEngine(t, 1)
	if err := e.AddNetwork(t.Context(), config.Network{Name: "blue", MTU: 1500, LearnLimit: 8}); err != nil {
		t.Fatal(err)
	}
	a, b := testPort("a", dir, 1), testPort("b", dir, 1)
	if err := e.AddPort(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), b); !errors.Is(err, control.ErrConflict) {
		t.Fatalf("two ports have one address: %v", err)
	}
	if err := remove(t, e, a.Name, false); err != nil {
		t.Fatal(err)
	}
	if err := e.AddPort(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := remove(t, e, b.Name, false); err != nil {
		t.Fatal(err)
	}
}
