package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

var (
	errReset = errors.New("the guest was reset meanwhile")
	errGone  = errors.New("the guest is gone")
)

// ExitError is the error of a program that ended in the guest with another
// status than 0.
type ExitError struct {
	Status int
	// Output is what the program wrote.
	Output string
}

func (e *ExitError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.Output), "\n")
	return fmt.Sprintf("exit status %d: %s", e.Status, strings.Join(lines[max(0, len(lines)-5):], "; "))
}

// control is the host's end of the protocol in init.sh. One goroutine reads;
// callers write under the lock.
type control struct {
	conn net.Conn

	mu      sync.Mutex
	boots   int
	awaited map[int][]chan struct{} // by number of the boot; closed when it is seen
	lastID  int
	running map[int]chan answer // each takes one answer
	early   map[int]answer      // to what another control began
	err     error               // set when nothing comes any more
}

type answer struct {
	output string
	err    error
}

func newControl(conn net.Conn) *control {
	c := &control{conn: conn, awaited: map[int][]chan struct{}{}, running: map[int]chan answer{}, early: map[int]answer{}}
	go c.read()
	return c
}

func (c *control) close() { c.conn.Close() }

func (c *control) bootCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots
}

// boot returns a channel that is closed once n boots were seen.
func (c *control) boot(n int) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(chan struct{})
	if c.boots >= n {
		close(seen)
	} else {
		c.awaited[n] = append(c.awaited[n], seen)
	}
	return seen
}

// run sends a script and waits for its end, or kills it when ctx ends.
func (c *control) run(ctx context.Context, script string) (string, error) {
	id, done, err := c.send(script)
	if err != nil {
		return "", err
	}
	select {
	case a := <-done:
		return a.output, a.err
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.running, id)
		fmt.Fprintf(c.conn, "kill %d\n", id)
		return "", ctx.Err()
	}
}

func (c *control) send(script string) (id int, done chan answer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.lastID++
	done = make(chan answer, 1)
	c.running[c.lastID] = done
	if _, err := fmt.Fprintf(c.conn, "run %d %x\n", c.lastID, script); err != nil {
		delete(c.running, c.lastID)
		return 0, nil, fmt.Errorf("%w: %w", errGone, err)
	}
	return c.lastID, done, nil
}

func (c *control) read() {
	in := bufio.NewReader(c.conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			c.gone(fmt.Errorf("%w: %w", errGone, err))
			return
		}
		// The line may begin with one that a reset cut short.
		if strings.Contains(line, "ready ") {
			c.booted()
			continue
		}
		var id, status int
		var output []byte
		if n, _ := fmt.Sscanf(line, "done %d %d %x", &id, &status, &output); n < 2 {
			continue
		}
		a := answer{output: string(output)}
		if status != 0 {
			a.err = &ExitError{status, a.output}
		}
		c.deliver(id, a)
	}
}

func (c *control) booted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boots++
	for _, seen := range c.awaited[c.boots] {
		close(seen)
	}
	delete(c.awaited, c.boots)
	c.failAll(errReset)
}

func (c *control) gone(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.failAll(err)
}

func (c *control) failAll(err error) {
	for id, done := range c.running {
		done <- answer{err: err}
		delete(c.running, id)
	}
}

func (c *control) deliver(id int, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done, ok := c.running[id]; ok {
		done <- a
		delete(c.running, id)
	} else {
		c.early[id] = a
	}
}

// follow makes c, of the machine into which another's guest moved, what from was: the guest answers here what it was asked there.
func (c *control) follow(from *control) {
	from.mu.Lock()
	defer from.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boots, c.lastID = from.boots, from.lastID
	for id, done := range from.running {
		if a, ok := c.early[id]; ok {
			done <- a
		} else {
			c.running[id] = done
		}
	}
	from.running, from.err = map[int]chan answer{}, errGone
}
