// Package systemd runs Debian's systemd as the init of a few namespaces, so that a unit file is tried by the program it is written for, with all it
// restricts, on a machine whose own init may be something else.
//
//	Start -> nsenter, unshare (pid, mount, ipc, uts, cgroup) -> prepare: /proc, /run, /etc, cgroup2 -> systemd
//	Run   -> nsenter -> systemctl ...
//	Close -> the init is killed, and with it everything inside
//
// The files of the machine are the host's; what is written below /etc and /usr/local/sbin is lost with it, and so is
// /dev/shm, of which each machine has its own; /run is a folder of the caller's, so that sockets there can be reached from outside.
package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// Init is where Debian has systemd.
const Init = "/lib/systemd/systemd"

// ErrNoCgroup says that this machine offers no cgroup hierarchy to work in.
var ErrNoCgroup = errors.New("no cgroup2 that can be written: mount it at /sys/fs/cgroup")

// Options of a machine.
type Options struct {
	// Namespace is the machine's network.
	Namespace *netlab.Namespace
	// Run is a folder that becomes /run.
	Run string
	// Files are put below /, which must be below /etc or /usr/local/sbin: content by path. Those in a folder of programs are made executable.
	Files map[string][]byte
}

// Machine is an init with what it started.
type Machine struct {
	unshare *netlab.Process
	pid     int    // of the init, outside
	cgroup  string // of everything inside
	files   string
}

// idle is the unit that the init starts: nothing.
const idle = "[Unit]\nDescription=Nothing yet\nDefaultDependencies=no\n"

// prepare makes what systemd wants to find; $1 is the folder that becomes /run, $2 has the files.
const prepare = `set -e
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind "$1" /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /mnt
for dir in /etc /usr/local/sbin; do
	mkdir -p "/mnt$dir.upper" "/mnt$dir.work" "$2$dir"
	cp -a "$2$dir/." "/mnt$dir.upper/"
	mount -t overlay overlay -o "lowerdir=$dir,upperdir=/mnt$dir.upper,workdir=/mnt$dir.work" "$dir"
done
exec env -i container=shunt-lab PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin ` + Init + ` --unit=idle.target --log-target=console --log-level=info
`

// Start boots a machine and waits until its systemd answers.
func Start(ctx context.Context, o Options) (_ *Machine, err error) {
	m := &Machine{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("boot systemd: %w", err), m.Close())
		}
	}()
	if m.files, err = os.MkdirTemp("", "shunt-systemd-"); err != nil {
		return nil, err
	}
	if err := m.write(o.Files); err != nil {
		return nil, err
	}
	hierarchy, err := cgroup2()
	if err != nil {
		return nil, err
	}
	m.cgroup = filepath.Join(hierarchy, fmt.Sprintf("shunt-lab-%d-%s", os.Getpid(), filepath.Base(m.files)))
	if err := os.Mkdir(m.cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCgroup, err)
	}
	group, err := os.Open(m.cgroup)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	cmd := o.Namespace.Command(context.WithoutCancel(ctx), "unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--propagation", "private",
		"sh", "-c", prepare, "sh", o.Run, m.files)
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	if m.unshare, err = netlab.Start(cmd); err != nil {
		return nil, err
	}
	return m, m.await(ctx)
}

func (m *Machine) write(files map[string][]byte) error {
	all := map[string][]byte{"/etc/systemd/system/idle.target": []byte(idle)}
	for name, content := range files {
		all[name] = content
	}
	for name, content := range all {
		path := filepath.Join(m.files, name)
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(filepath.Dir(name), "bin") {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, mode)); err != nil {
			return err
		}
	}
	return nil
}

// cgroup2 is where the unified hierarchy is mounted.
func cgroup2() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", ErrNoCgroup
}

// await finds the init, and waits until systemctl has an answer.
func (m *Machine) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("it does not answer after 30 s"))
	defer cancel()
	var last error
	for {
		if pid := child(m.unshare.PID()); insidePID(pid) == "1" { // before, it is a step of the way there
			m.pid = pid
			if _, last = m.Run(ctx, "systemctl", "is-active", "idle.target"); last == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w\n%s", context.Cause(ctx), last, m.Log())
		case <-m.unshare.Exited():
			return fmt.Errorf("it ended:\n%s", m.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// child is a process's first one, 0 if it has none yet.
func child(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0
	}
	first, _ := strconv.Atoi(fields[0])
	return first
}

// Run runs a program inside the machine and returns what it wrote.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	enter := []string{"--target", strconv.Itoa(m.pid), "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// PID is that of a service's main process, outside; 0 if there is none.
func (m *Machine) PID(ctx context.Context, unit string) (int, error) {
	inside, err := m.Run(ctx, "systemctl", "show", "--property", "MainPID", "--value", unit)
	if err != nil {
		return 0, err
	}
	inside = strings.TrimSpace(inside)
	if inside == "0" {
		return 0, nil
	}
	pids, err := m.pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if insidePID(pid) == inside {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process is %s inside", inside)
}

// insidePID is what a process has in its own namespace, if that is another one.
func insidePID(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" {
			return f[len(f)-1]
		}
	}
	return ""
}

// pids are all processes inside.
func (m *Machine) pids() (all []int, err error) {
	err = filepath.WalkDir(m.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, field := range strings.Fields(string(text)) {
			if pid, bad := strconv.Atoi(field); bad == nil {
				all = append(all, pid)
			}
		}
		return err
	})
	return all, err
}

// Log is what systemd wrote to its console.
func (m *Machine) Log() string {
	if m.unshare == nil {
		return ""
	}
	return m.unshare.Output()
}

// Close ends the machine and removes its cgroups.
func (m *Machine) Close() error {
	var errs []error
	if m.unshare != nil {
		m.unshare.Kill()
		m.unshare = nil
	}
	if m.files != "" {
		errs = append(errs, os.RemoveAll(m.files))
	}
	if m.cgroup != "" {
		errs = append(errs, removeCgroup(m.cgroup))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup with those inside, as soon as the last process is gone.
func removeCgroup(path string) (err error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var dirs []string
		walk := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return err
		})
		if errors.Is(walk, fs.ErrNotExist) {
			return nil
		}
		slices.Reverse(dirs) // the inner ones first
		for _, dir := range dirs {
			err = os.Remove(dir)
		}
	}
	return fmt.Errorf("remove cgroup %s: %w", path, err)
}
