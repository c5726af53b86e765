package filetest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shuntio/shunt/tools/need"
	"golang.org/x/sys/unix"
)

// served names the directory that this program, run once more, serves.
const served = "SHUNT_TEST_FUSE"

func init() {
	if dir := os.Getenv(served); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// FS is a mounted file system.
type FS struct {
	testing.TB
	dir string

	server *exec.Cmd
	ended  bool

	mu   sync.Mutex // of what follows: one question at a time
	say  io.Writer
	hear *bufio.Reader
}

// Size is that of each file, Filling what it is full of.
const (
	Size    = 8 << 20
	Filling = 0xa5
)

// Mount mounts one, until the end of the test.
func Mount(tb testing.TB) *FS {
	tb.Helper()
	need.Root(tb)
	need.Device(tb, "/dev/fuse")
	f := &FS{TB: tb, dir: tb.TempDir(), server: exec.Command("/proc/self/exe", "-test.run", "^$")}
	f.server.Env = append(os.Environ(), served+"="+f.dir)
	f.server.Stderr = os.Stderr
	say, err := f.server.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	hear, err := f.server.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.server.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(f.End)
	f.say, f.hear = say, bufio.NewReader(hear)
	if line, err := f.hear.ReadString('\n'); line != "mounted\n" {
		need.Missing(tb, "a FUSE file system cannot be mounted: %s %v", strings.TrimSpace(line), err)
	}
	return f
}

// Disk is the path of a file.
func (f *FS) Disk(n int) string { return filepath.Join(f.dir, fmt.Sprintf("disk%d", n)) }

// HangOn keeps the server from answering what asks for one operation: read, write, fsync, fallocate, poll; all.
func (f *FS) HangOn(op string) { f.ask("hang " + op) }

// Unread keeps it from even reading what it is asked, as if it had been stopped.
func (f *FS) Unread() { f.ask("unread") }

// GoOn has it answer again, also what it has not answered.
func (f *FS) GoOn() { f.ask("go on") }

// Held is how many requests it has that it does not answer.
func (f *FS) Held() int { return f.ask("held") }

func (f *FS) ask(what string) (n int) {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := fmt.Fprintln(f.say, what)
	if err == nil {
		_, err = fmt.Fscanln(f.hear, &n)
	}
	if err != nil {
		f.Errorf("the server of the file system, asked to %s: %v", what, err)
	}
	return n
}

// End kills the server: whoever waits for it gets an error.
func (f *FS) End() {
	if f.ended {
		return
	}
	f.ended = true
	_ = f.server.Process.Kill()
	_ = f.server.Wait()
	if err := unix.Unmount(f.dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		f.Errorf("unmount %s: %v", f.dir, err)
	}
}
