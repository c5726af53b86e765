package hostile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk/driver/drivertest"
	"github.com/shuntio/shunt/tools/need"
)

// wrong is what qemu-storage-daemon 7.2 does differently from what is demanded here.
var wrong = map[string]string{"indirect and next": "QEMU ignores next"}

// TestStorageDaemon: what an old and honest device makes of it, except what kills it.
func TestStorageDaemon(t *testing.T) {
	need.Time(t, "attacks another daemon")
	need.Program(t, drivertest.Program)
	s, err := drivertest.Start(drivertest.Options{Dir: t.TempDir(), Size: 4 << 20, Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	o := Options{Path: s.Socket, Silence: 50 * time.Millisecond}
	if err := Prepare(ctx, o); err != nil {
		t.Fatal(err)
	}
	for _, a := range Attacks(false) {
		t.Run(a.Name, func(t *testing.T) {
			if a.Fatal {
				t.Skip("it does not survive")
			}
			if why, ok := wrong[a.Name]; ok {
				t.Skip(why)
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			if err := a.Run(ctx, o); err != nil {
				t.Error(err)
			}
			select {
			case <-s.Gone():
				t.Error("it died")
				if err := s.Restart(); err != nil {
					t.Fatal(err)
				}
			default:
			}
		})
	}
}

// TestFinds: a device that answers what it must refuse is found.
func TestFinds(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "blk.sock")}
	b, err := drivertest.Serve(drivertest.BackendOptions{Path: o.Path, Content: drivertest.NewContent(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Kill() })
	if err := Prepare(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, a := range Attacks(false) {
		if a.Name == "IN of half a sector" {
			if err := a.Run(t.Context(), o); !errors.Is(err, ErrDevice) {
				t.Errorf("%s: %v", a.Name, err)
			}
		}
		if a.Expect == MustSucceed {
			if err := a.Run(t.Context(), o); err != nil {
				t.Errorf("%s: %v", a.Name, err)
			}
		}
	}
}
