package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// DefaultPinPath is where links are pinned when nothing else is asked for.
const DefaultPinPath = "/sys/fs/bpf/shunt"

const bpffs = "/sys/fs/bpf"

// claim is the right to an interface's XDP hook. It is a directory on the BPF
// file system and a lock on that directory:
//
//	/sys/fs/bpf/shunt/            PinPath
//	  4026531840-3/               network namespace and interface index
//	    link                      the pinned bpf_link
//
// The kernel drops the lock when its holder dies, however it dies, and keeps
// the pin. So a locked directory has a living owner, and an unlocked one with a
// link in it a dead one. Lock and pin cannot be apart, as they are one inode's.
// The index, not the name, is in the path: it survives a rename, and bpffs
// allows no dots.
type claim struct {
	dir  string
	lock *os.File
}

func claimDir(root string, index int) (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("identify the network namespace: %w", err)
	}
	return filepath.Join(root, fmt.Sprintf("%d-%d", ns.Ino, index)), nil
}

// takeClaim returns the claim on dev, or an error wrapping ErrBusy that names
// the process that has it.
func takeClaim(root string, dev device) (*claim, error) {
	dir, err := claimDir(root, dev.index)
	if err != nil {
		return nil, err
	}
	for tries := 0; ; tries++ {
		var c *claim
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			c, err = lockDir(dir)
		}
		if errors.Is(err, fs.ErrNotExist) && tries < 100 {
			continue // its last owner removed it just now
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, tell([]error{ErrBusy}, "interface %s belongs to %s: stop that, or choose another interface", dev.name, describeOwner(dir))
		}
		if err != nil {
			return nil, Explain("claim "+dev.name, err)
		}
		return c, nil
	}
}

// lockDir locks an existing directory. A lock on one that was removed between
// the opening and the locking is worth nothing, so the path is looked at again.
func lockDir(dir string) (*claim, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	ours, err1 := f.Stat()
	there, err2 := os.Stat(dir)
	if err := errors.Join(err1, err2); err != nil {
		f.Close()
		return nil, err
	}
	if !os.SameFile(ours, there) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, fs.ErrNotExist)
	}
	return &claim{dir: dir, lock: f}, nil
}

func (c *claim) link() string { return filepath.Join(c.dir, "link") }

// removePin removes the link's pin, if there is one. The link itself lives on
// while a descriptor is open.
func (c *claim) removePin() error {
	if err := os.Remove(c.link()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Explain("unpin", err)
	}
	return nil
}

// release gives the claim up; the directories go with it when no pin is in them.
func (c *claim) release() {
	_ = os.Remove(c.dir)
	_ = os.Remove(filepath.Dir(c.dir))
	c.lock.Close()
}

// owner returns the pid of the living process that has the claim on dir, 0 for
// none. The kernel lists locks in /proc/locks as
//
//	1: FLOCK  ADVISORY  WRITE 709 00:1c:33447 0 EOF
func owner(dir string) int {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kind, advisory, access, inode string
		var number, pid int
		n, _ := fmt.Sscanf(lines.Text(), "%d: %s %s %s %d %s", &number, &kind, &advisory, &access, &pid, &inode)
		if n == 6 && kind == "FLOCK" && inode == want {
			return pid
		}
	}
	return 0
}

func describeOwner(dir string) string {
	pid := owner(dir)
	if pid == 0 {
		return "another process"
	}
	return fmt.Sprintf("process %d (%s)", pid, processName(pid))
}

func processName(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(comm))
}

// mountBPFFS makes sure that root lies, or can be made, on a BPF file system.
func mountBPFFS(root string) error {
	dir := root
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil && st.Type == unix.BPF_FS_MAGIC {
			return nil
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	if rel, err := filepath.Rel(bpffs, root); err != nil || strings.HasPrefix(rel, "..") {
		return fmt.Errorf("%w: pin path %s is on no BPF file system, mount one with `mount -t bpf bpf %s`", ErrInvalid, root, dir)
	}
	err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if err == nil {
		return nil
	}
	causes := []error{err}
	if errors.Is(err, os.ErrPermission) {
		causes = append(causes, ErrPermission)
	}
	return tell(causes, "no BPF file system is on %s, and mounting one failed (%v): mount it as root with `mount -t bpf bpf %s`", bpffs, err, bpffs)
}

// sweep removes the pins of interfaces that no longer exist, which nobody else
// would ever claim again.
func sweep(root string) {
	pins, _ := filepath.Glob(filepath.Join(root, "*", "link"))
	for _, pin := range pins {
		if !defunct(pin) {
			continue
		}
		c, err := lockDir(filepath.Dir(pin))
		if err != nil {
			continue // its owner lives and will clean up itself
		}
		if defunct(pin) {
			_ = c.removePin()
		}
		c.release()
	}
}

// defunct reports whether the XDP link pinned at path has lost its interface.
func defunct(path string) bool {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && info.XDP() != nil && info.XDP().Ifindex == 0
}
