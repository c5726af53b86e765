package hostile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

func TestMain(m *testing.M) {
	drivertest.Child()
	os.Exit(m.Run())
}

// TestEngine: our own device passes, all of it, in one process: on a file and in memory by turns, all combinations in a soak.
func TestEngine(t *testing.T) {
	for i := range 8 {
		packed, onFile, inflight := i&1 != 0, i&2 != 0, i&4 == 0
		if packed == onFile && !need.Soak() || !inflight && !need.Soak() {
			continue
		}
		t.Run(fmt.Sprint("packed=", packed, " file=", onFile, " inflight=", inflight), func(t *testing.T) {
			t.Parallel() // an attack is mostly silence
			o := drivertest.EngineOptions{Socket: filepath.Join(t.TempDir(), "blk.sock"), Size: 4 << 20}
			if onFile {
				o.File = filepath.Join(t.TempDir(), "disk.raw")
				if err := os.WriteFile(o.File, make([]byte, o.Size), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			attackEngine(t, o, Options{Path: o.Socket, Packed: packed, Inflight: inflight, Silence: 50 * time.Millisecond})
		})
	}
}

func attackEngine(t *testing.T, o drivertest.EngineOptions, h Options) {
	p, err := drivertest.Spawn(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	if err := Prepare(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	for _, a := range Attacks(h.Packed) {
		t.Run(a.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := a.Run(ctx, h); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-p.Gone():
			t.Fatalf("it died of %q", a.Name)
		default:
		}
	}
}
