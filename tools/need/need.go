// Package need gates tests on what the machine must offer: privileges,
// programs, kernel versions, file systems, devices.
//
//	need.X(t) -> there? -> the test goes on
//	             not    -> CI=true:  the test fails   (a gate that always skips hides a broken test)
//	                       else:     the test skips, with the reason and what to do
//
// Time alone lets a test skip in CI as well: who says -short wants less.
//
// A gate is the first thing a test calls, before it makes anything.
package need

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// CI reports whether a missing need must fail the test instead of skipping it.
// It is so when the environment variable CI is "true", as .ci/run sets it.
func CI() bool { return os.Getenv("CI") == "true" }

// Soak reports whether tests shall run their full counts (`make soak` sets
// SHUNT_SOAK=1) instead of the shorter ones of `make test`.
func Soak() bool { return os.Getenv("SHUNT_SOAK") == "1" }

// Missing ends the test because something it needs is not there: it fails when
// CI is set and skips elsewhere. The format says what is missing and what to do.
// Tests with needs of their own call it as the gates of this package do.
func Missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	reason := fmt.Sprintf(format, args...)
	if CI() {
		tb.Fatalf("need: %s (CI=true, so this is a failure)", reason)
	}
	note(tb, reason)
	tb.Skipf("need: %s", reason)
}

// note adds a skipped test to the file SHUNT_SKIPPED names, from which `make test`
// lists at its end what it has not tried.
func note(tb testing.TB, reason string) {
	path := os.Getenv("SHUNT_SKIPPED")
	if path == "" {
		return
	}
	tb.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		tb.Fatalf("need: note a skipped test: %v", err)
	}
	defer f.Close()
	fmt.Fprintf(f, "%s: %s\n", tb.Name(), reason)
}

// Time asks for more of it than the quick loop has: under -short the test skips. What says what the test does, such as "boots a guest".
func Time(tb testing.TB, what string) {
	tb.Helper()
	if testing.Short() {
		tb.Skipf("%s, which make test does and -short does not", what)
	}
}

// Root asks for the privileges to make namespaces, interfaces, mounts and BPF
// programs: the effective capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN.
func Root(tb testing.TB) {
	tb.Helper()
	for _, c := range []struct {
		name string
		bit  uint
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}} {
		ok, err := capable(c.bit)
		if err != nil {
			tb.Fatalf("need: read the capabilities of this process: %v", err)
		}
		if !ok {
			Missing(tb, "%s is missing; run the test as root", c.name)
		}
	}
}

// capable reports whether the calling thread holds capability bit effectively.
func capable(bit uint) (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3: 64 bits in two halves
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, err
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0, nil
}

// Program asks for every named program in PATH, or at its path when the name
// has a slash.
func Program(tb testing.TB, names ...string) {
	tb.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(tb, "the program %s is not installed; `make setup` installs it", name)
		}
	}
}

// Kernel asks for a running kernel of at least major.minor.
func Kernel(tb testing.TB, major, minor int) {
	tb.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		tb.Fatalf("need: uname: %v", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	haveMajor, haveMinor, err := parseRelease(release)
	if err != nil {
		tb.Fatalf("need: %v", err)
	}
	if haveMajor < major || haveMajor == major && haveMinor < minor {
		Missing(tb, "this kernel is %s, the test needs %d.%d or newer", release, major, minor)
	}
}

// parseRelease takes major and minor from a kernel release such as
// "6.1.0-18-amd64" or "6.18-rc3".
func parseRelease(release string) (major, minor int, err error) {
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return 0, 0, fmt.Errorf("kernel release %q does not begin with major.minor", release)
	}
	return major, minor, nil
}

// Device asks for a device node the test may open for reading and writing, such
// as /dev/kvm or /dev/net/tun.
func Device(tb testing.TB, path string) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, fs.ErrNotExist):
		Missing(tb, "%s does not exist; load its driver or give the container the device", path)
	default:
		Missing(tb, "%s cannot be opened: %v", path, err)
	}
}

// BPFFS asks for a BPF file system and returns an empty directory on it, removed
// with all its pins when the test ends. It uses /sys/fs/bpf, and mounts a
// private instance where that is something else.
func BPFFS(tb testing.TB) string {
	tb.Helper()
	Root(tb)
	root := "/sys/fs/bpf"
	if !isBPFFS(root) {
		root = tb.TempDir()
		if err := unix.Mount("bpf", root, "bpf", 0, ""); err != nil {
			Missing(tb, "no BPF file system at /sys/fs/bpf and none can be mounted: %v", err)
		}
		tb.Cleanup(func() {
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				tb.Errorf("need: unmount %s: %v", root, err)
			}
		})
	}
	// bpffs refuses names with a dot; MkdirTemp adds digits only.
	dir, err := os.MkdirTemp(root, "shunt-test-")
	if err != nil {
		Missing(tb, "no directory can be made on the BPF file system %s: %v", root, err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("need: remove pins: %v", err)
		}
	})
	return dir
}

func isBPFFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint64(st.Type) == unix.BPF_FS_MAGIC
}

// HugePages asks for n free huge pages of the default size.
func HugePages(tb testing.TB, n int) {
	tb.Helper()
	free, err := freeHugePages()
	if err != nil {
		Missing(tb, "huge pages cannot be counted: %v", err)
	}
	if free < n {
		Missing(tb, "%d huge pages are free, the test needs %d; raise vm.nr_hugepages", free, n)
	}
}

func freeHugePages() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), "HugePages_Free:")
	var n int
	if !ok {
		return 0, errors.New("/proc/meminfo has no HugePages_Free: the kernel was built without them")
	}
	if _, err := fmt.Sscan(rest, &n); err != nil {
		return 0, fmt.Errorf("/proc/meminfo: HugePages_Free: %w", err)
	}
	return n, nil
}
