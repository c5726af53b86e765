package need

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeTB records how a gate ended the test. Like the real one, its Fatalf and
// Skipf do not return.
type fakeTB struct {
	testing.TB
	fatal, skip string
}

func (f *fakeTB) Helper() {}

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (f *fakeTB) Skipf(format string, args ...any) {
	f.skip = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// gate runs fn as a test of its own and returns how that test ended.
func gate(ci string, t *testing.T, fn func(testing.TB)) *fakeTB {
	t.Helper()
	t.Setenv("CI", ci)
	t.Setenv("SHUNT_SKIPPED", "") // what ends here is the fake
	f := &fakeTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn(f)
	}()
	<-done
	return f
}

func TestGates(t *testing.T) {
	absent := t.TempDir() + "/no-such-device"
	for _, tc := range []struct {
		name   string
		fn     func(testing.TB)
		reason string // empty: the gate opens
	}{
		{"program there", func(tb testing.TB) { Program(tb, "sh", "/bin/sh") }, ""},
		{"program missing", func(tb testing.TB) { Program(tb, "sh", "no-such-program") }, "the program no-such-program is not installed"},
		{"kernel old enough", func(tb testing.TB) { Kernel(tb, 3, 0) }, ""},
		{"kernel too old", func(tb testing.TB) { Kernel(tb, 999, 1) }, "needs 999.1 or newer"},
		{"device there", func(tb testing.TB) { Device(tb, "/dev/null") }, ""},
		{"device missing", func(tb testing.TB) { Device(tb, absent) }, "does not exist"},
		{"huge pages", func(tb testing.TB) { HugePages(tb, 1<<40) }, "huge pages"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inCI, elsewhere := gate("true", t, tc.fn), gate("", t, tc.fn)
			if tc.reason == "" {
				if inCI.fatal != "" || elsewhere.skip != "" {
					t.Fatalf("gate closed: fatal %q, skip %q", inCI.fatal, elsewhere.skip)
				}
				return
			}
			if !strings.Contains(inCI.fatal, tc.reason) || inCI.skip != "" {
				t.Errorf("CI=true: fatal %q, skip %q; want a failure with %q", inCI.fatal, inCI.skip, tc.reason)
			}
			if !strings.Contains(elsewhere.skip, tc.reason) || elsewhere.fatal != "" {
				t.Errorf("CI unset: fatal %q, skip %q; want a skip with %q", elsewhere.fatal, elsewhere.skip, tc.reason)
			}
		})
	}
}

func TestSkippedIsNoted(t *testing.T) {
	t.Setenv("CI", "")
	path := t.TempDir() + "/skipped"
	t.Setenv("SHUNT_SKIPPED", path)
	t.Run("inner", func(t *testing.T) { note(t, "no moon") })
	b, err := os.ReadFile(path)
	if want := "TestSkippedIsNoted/inner: no moon\n"; string(b) != want {
		t.Fatalf("noted %q, %v; want %q", b, err, want)
	}
}

// A thread without its capabilities must be told to run as root.
func TestRootWithoutCapabilities(t *testing.T) {
	Root(t)
	f := gate("", t, func(tb testing.TB) {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			tb.Fatalf("capset: %v", err)
		}
		Root(tb)
	})
	if !strings.Contains(f.skip, "CAP_NET_ADMIN") {
		t.Fatalf("skip %q, fatal %q; want a skip that names CAP_NET_ADMIN", f.skip, f.fatal)
	}
}

func TestBPFFS(t *testing.T) {
	Root(t)
	var dir string
	t.Run("inner", func(t *testing.T) {
		dir = BPFFS(t)
		if !isBPFFS(dir) {
			t.Fatalf("%s is not on a BPF file system", dir)
		}
		if err := os.Mkdir(dir+"/sub", 0o700); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("%s is left behind: %v", dir, err)
	}
}

func TestParseRelease(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.1.0-18-amd64": {6, 1}, "6.18-rc3": {6, 18}, "5.15.167.4+": {5, 15},
	} {
		major, minor, err := parseRelease(release)
		if err != nil || major != want[0] || minor != want[1] {
			t.Errorf("%s: %d.%d, %v; want %v", release, major, minor, err, want)
		}
	}
	if _, _, err := parseRelease("next"); err == nil {
		t.Error("a release without a number is accepted")
	}
}
