package file

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/dataplane/uring"
)

// victim names the file that this program, run once more as a daemon to be killed, writes until its end.
const victim = "SHUNT_TEST_VICTIM"

// A daemon is killed in the middle of its writes. When the next one has the lock, none of them is still on its way.
func TestKilled(t *testing.T) {
	const size = 4 << 20
	path, _ := makeFile(t, t.TempDir(), size)
	for range 5 {
		self := exec.Command("/proc/self/exe", "-test.run", "^TestVictim$")
		self.Env = append(os.Environ(), victim+"="+path)
		out, err := self.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := self.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "writing\n" {
			t.Fatalf("the other daemon says %q, %v", line, err)
		}
		if _, err := Open(path, Options{Patience: -1}); !errors.Is(err, ErrLocked) {
			t.Errorf("while the other daemon runs: %v", err)
		}
		_ = self.Process.Kill()
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = self.Wait()
		time.Sleep(20 * time.Millisecond) // for what must not happen
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Error("a write of the killed daemon was done after the next one had the lock")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestVictim is the other daemon: it writes until it is killed.
func TestVictim(t *testing.T) {
	path := os.Getenv(victim)
	if path == "" {
		return // only TestKilled has it run
	}
	s := openStore(t, path, Options{Direct: true})
	u := newBed(t, uring.Options{}).open(s)
	const length = 128 << 10
	m := memory(t, 32*length)
	var all [32]*request
	for i := range all {
		all[i] = newRequest(blk.OpWrite, uint64(i)*length, length, m[i*length:][:length])
		all[i].done = 1
	}
	os.Stdout.WriteString("writing\n")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		for i, q := range all {
			if q.done > 0 {
				q.done = 0
				random(m[i*length:][:4096], byte(time.Now().UnixNano()))
				u.submit(q)
			}
		}
		u.worker.Round()
	}
}
