package drivertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// childVariable has what an Engine in a process of its own is to be, as JSON.
const childVariable = "SHUNT_DRIVERTEST_ENGINE"

// Child makes this process an Engine, for ever, if Spawn has started it. Programs that Spawn call it first of all: tests in TestMain.
func Child() {
	s := os.Getenv(childVariable)
	if s == "" {
		return
	}
	var o EngineOptions
	err := json.Unmarshal([]byte(s), &o)
	if err == nil {
		runtime.GOMAXPROCS(max(o.Workers, 1) + 2) // as the daemon does
		_, err = StartEngine(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "drivertest:", err)
		os.Exit(1)
	}
	select {}
}

// Process is an Engine in a process of its own, that can be killed.
type Process struct {
	o    EngineOptions
	cmd  *exec.Cmd
	done chan struct{}
}

// Spawn starts this program once more, as an Engine.
func Spawn(o EngineOptions) (*Process, error) {
	p := &Process{o: o}
	return p, p.Restart()
}

// Restart starts it again after a Kill.
func (p *Process) Restart() error {
	b, err := json.Marshal(p.o)
	if err != nil {
		return err
	}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), childVariable+"="+string(b))
	p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	if p.done, err = Launch(p.cmd); err != nil {
		return fmt.Errorf("start an engine: %w", err)
	}
	return nil
}

// Launch starts a command that is killed when this process ends, however that ends; done is closed when the command has.
func Launch(cmd *exec.Cmd) (done chan struct{}, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread has ended that started the command
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return done, nil
}

// PID is its process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Gone is closed when it has ended.
func (p *Process) Gone() <-chan struct{} { return p.done }

// Kill kills it, and returns when it is gone.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
