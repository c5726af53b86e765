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

// TestEngine: our own device passes, all of it, in one process; without an in-flight area only in a soak.
func TestEngine(t *testing.T) {
	for _, packed := range []bool{false, true} {
		for _, inflight := range []bool{true, false} {
			if !inflight && !need.Soak() {
				continue
			}
			t.Run(fmt.Sprint("packed=", packed, " inflight=", inflight), func(t *testing.T) {
				o := drivertest.EngineOptions{Socket: filepath.Join(t.TempDir(), "blk.sock"), Size: 4 << 20}
				p, err := drivertest.Spawn(o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = p.Kill() })
				h := Options{Path: o.Socket, Packed: packed, Inflight: inflight, Silence: 50 * time.Millisecond}
				if err := Prepare(t.Context(), h); err != nil {
					t.Fatal(err)
				}
				for _, a := range Attacks(packed) {
					t.Run(a.Name, func(t *testing.T) {
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						defer cancel()
						if err := a.Run(ctx, h); err != nil {
							t.Error(err)
						}
						select {
						case <-p.Gone():
							t.Error("it died")
							if err := p.Restart(); err != nil {
								t.Fatal(err)
							}
						default:
						}
					})
				}
			})
		}
	}
}
