package netlab

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Process is a program that runs beside its caller, until it ends or is
// killed. Its methods may be called from several goroutines.
type Process struct {
	cmd    *exec.Cmd
	output log
	exited chan struct{} // closed after err is set
	err    error
}

// Start starts a command made by [Namespace.Command]. What it writes is kept
// unless the command has an output of its own.
func Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	if cmd.Stdout == nil && cmd.Stderr == nil {
		cmd.Stdout, cmd.Stderr = &p.output, &p.output
	}
	if err := fork(cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// forks is a goroutine with a thread that lives as long as the process.
var forks = sync.OnceValue(func() chan<- func() {
	do := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range do {
			f()
		}
	}()
	return do
})

// fork starts a command on that thread: others end with goroutines that are
// locked to them, and with them, by Pdeathsig, the processes they made.
func fork(cmd *exec.Cmd) error {
	done := make(chan error)
	forks() <- func() { done <- cmd.Start() }
	return <-done
}

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running says whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Result waits for the end and returns the exit status, -1 after a signal,
// and what went wrong, nil for status 0.
func (p *Process) Result() (status int, err error) {
	<-p.exited
	return p.cmd.ProcessState.ExitCode(), p.err
}

// Output is what the process wrote so far.
func (p *Process) Output() string { return p.output.String() }

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process; one that has ended gets none.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill kills the process and those it started, as a crash would, and waits.
func (p *Process) Kill() {
	if p.Running() {
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	}
	<-p.exited
}

// log is written by os/exec's goroutine and read by others.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
