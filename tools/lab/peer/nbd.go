package peer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// NBDServer is a server of the Network Block Device protocol that we did not write.
type NBDServer struct {
	*netlab.Process
	// URI under which it serves.
	URI string

	ns      *netlab.Namespace
	program string
	args    []string
}

// StartNBD starts a server in a namespace, nil for the caller's, and waits until it answers under its URI. The program must stay in the foreground.
func StartNBD(ctx context.Context, ns *netlab.Namespace, uri, program string, args ...string) (*NBDServer, error) {
	s := &NBDServer{URI: uri, ns: ns, program: program, args: args}
	return s, s.Start(ctx)
}

// Start starts it again after it ended.
func (s *NBDServer) Start(ctx context.Context) (err error) {
	s.Process, err = netlab.Start(s.ns.Command(context.Background(), s.program, s.args...))
	if err != nil {
		return fmt.Errorf("start %s: %w", s.program, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = s.ns.Run(ctx, "nbdinfo", "--size", s.URI); err == nil {
			return nil
		}
		select {
		case <-s.Exited():
			return fmt.Errorf("%s ended: %s", s.program, s.Output())
		case <-ctx.Done():
			s.Kill()
			return fmt.Errorf("%s does not answer: %w\n%s", s.program, err, s.Output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Pause stops the server where it stands, and returns when none of its threads runs any more: until then it may still answer. Resume has it go on.
func (s *NBDServer) Pause(ctx context.Context) error {
	s.Signal(syscall.SIGSTOP)
	for !stopped(s.PID()) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not stop: %w", s.program, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// Resume has a server go on that was paused.
func (s *NBDServer) Resume() { s.Signal(syscall.SIGCONT) }

// stopped tells whether all threads of a process have stopped.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range threads {
		text, readErr := os.ReadFile(file)
		_, state, _ := strings.Cut(string(text), ") ") // behind the name
		if readErr == nil && !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return err == nil
}
