package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// enter gives a process a view of /sys that fits its namespace, then becomes
// the program. The mounts are the process's own and end with it.
const enter = `mount -t sysfs sysfs /sys && mount --bind "$0" /sys/fs/bpf && exec "$@"`

// Command prepares a program to run inside the namespace; a nil namespace is
// the caller's own. The process that Start makes becomes the program itself,
// so its pid and signals are the program's. It leads a process group of its
// own, which a Ctrl-C on the caller's terminal does not reach and which is
// killed as a whole when ctx ends; it is also killed when this process dies.
// To be started by [Start] or [Namespace.Run]: the kernel takes the end of the
// thread that made a process for the end of this one.
func (ns *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if ns != nil {
		wrap := []string{"--net=" + ns.Path(), "unshare", "--mount", "--propagation=slave", "sh", "-c", enter, ns.BPF(), name}
		name, args = "nsenter", append(wrap, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a program inside the namespace and returns what it wrote to
// standard output and standard error. The error of a program that failed
// names it and carries the last lines it wrote.
func (ns *Namespace) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := ns.Command(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := fork(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	where := ""
	if ns != nil {
		where = " in " + ns.Name
	}
	return out.String(), fmt.Errorf("%s %s%s: %w: %s", name, strings.Join(args, " "), where, err, lastLines(out.String(), 5))
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
