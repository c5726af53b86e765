package guest

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/leftover"
	"github.com/shuntio/shunt/tools/need"
)

func TestMain(m *testing.M) { os.Exit(leftover.Run(m.Run)) }

func image(t *testing.T) Image {
	t.Helper()
	need.Time(t, "boots a guest")
	need.Program(t, "qemu-system-x86_64")
	need.Program(t, "apt-get")
	need.Program(t, "dpkg-deb")
	image, err := Build(t.Context(), Recipe{Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// noSleep waits until nothing sleeps in the guest. What its init has not buried yet, which it does when it is asked for something, does not count.
func noSleep(t *testing.T, g *Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := g.Shell(ctx, "while ps -o stat,comm | grep -v ^Z | grep -q ' sleep$'; do usleep 10000; done"); err != nil {
		t.Error(err)
	}
}

func TestGuest(t *testing.T) {
	begin := time.Now()
	img := image(t)
	t.Logf("image after %v", time.Since(begin))
	begin = time.Now()
	g, err := Start(t.Context(), Options{Name: "solo", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(g.Console())
		}
	})
	t.Logf("boot took %v", time.Since(begin))

	t.Run("output", func(t *testing.T) {
		const odd = `a 'quoted' "word" $HOME \n`
		if out, err := g.Run(t.Context(), "echo", odd, "done 1 0 00"); err != nil || out != odd+" done 1 0 00\n" {
			t.Errorf("%q, %v", out, err)
		}
		out, err := g.Shell(t.Context(), "cat /modules/order; lsmod; ip -V; iperf3 -v; ethtool --version")
		if err != nil || !strings.Contains(out, "virtio_net") || !strings.Contains(out, "iproute2") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("status", func(t *testing.T) {
		var exit *ExitError
		if _, err := g.Shell(t.Context(), "echo why; exit 7"); !errors.As(err, &exit) || exit.Status != 7 || exit.Output != "why\n" {
			t.Errorf("%v", err)
		}
	})
	t.Run("CPUs", func(t *testing.T) { // one, of a machine that may have more: else QEMU emulates it without fences
		if out, err := g.Run(t.Context(), "cat", "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible"); err != nil || out != "0\n0-1\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for _, word := range []string{"one", "two", "three"} {
			all.Go(func() {
				out, err := g.Shell(t.Context(), "seq 1 3000 | sed 's/$/ "+word+"/'")
				if err != nil || strings.Count(out, word) != 3000 {
					t.Errorf("%s: %v, %d bytes", word, err, len(out))
				}
			})
		}
		all.Wait()
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := g.Run(ctx, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		noSleep(t, g)
	})
	t.Run("context that is over at once", func(t *testing.T) { // the guest has not begun when it is told to stop
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if _, err := g.Run(ctx, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
		noSleep(t, g)
	})
	t.Run("reset", func(t *testing.T) {
		begin := time.Now()
		if _, err := g.Run(t.Context(), "touch", "/tmp/before"); err != nil {
			t.Error(err)
		}
		running := make(chan error, 1)
		go func() {
			_, err := g.Run(t.Context(), "sleep", "1000")
			running <- err
		}()
		if _, err := g.Shell(t.Context(), "until pidof sleep; do usleep 10000; done"); err != nil {
			t.Error(err)
		}
		if err := g.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-running; !errors.Is(err, errReset) {
			t.Errorf("the program that ran got %v", err)
		}
		if _, err := g.Run(t.Context(), "test", "!", "-e", "/tmp/before"); err != nil {
			t.Error(err)
		}
		t.Logf("reset took %v", time.Since(begin))
	})
	t.Run("killed", func(t *testing.T) {
		g.Kill()
		if _, err := g.Run(t.Context(), "true"); !errors.Is(err, errGone) {
			t.Error(err)
		}
	})
}

func TestGuestThatCannotStart(t *testing.T) {
	img := image(t)
	_, err := Start(t.Context(), Options{Name: "bad", Image: img, NICs: []NIC{{Socket: "/nonexistent", Properties: "nonsense=1"}}})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("%v", err)
	}
}

// A half-written or foreign directory in the cache must not be booted.
func TestImageIsTrustedOnlyWhole(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{kernelFile, initramfsFile} {
		if err := os.WriteFile(dir+"/"+name, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := trusted(dir); ok {
		t.Error("an image without a manifest is trusted")
	}
	if err := writeManifest(dir, manifest{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := trusted(dir); !ok {
		t.Error("a whole image is not trusted")
	}
	if err := os.Truncate(dir+"/"+kernelFile, 3); err != nil {
		t.Fatal(err)
	}
	if _, ok := trusted(dir); ok {
		t.Error("an image with a short kernel is trusted")
	}
}
