package vnet_test

import (
	"bufio"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/dataplane/vnet/vnettest"
)

// A device in a process of its own, which is killed again and again under full load. What TestKilledBetweenStores does store by store, this does at any
// instruction there is.

const victimEnv = "SHUNT_TEST_VICTIM"

// victim is what the process is told: descriptors are numbered from 3 on.
type victim struct {
	StateFile string
	Features  uint64
	Region    vhostuser.Region
	Vrings    [2]vhostuser.VringConfig
}

// TestVictim is the process; it echoes frames until it is killed.
func TestVictim(t *testing.T) {
	told := os.Getenv(victimEnv)
	if told == "" {
		return // only as a process that TestKilled starts
	}
	var v victim
	if err := json.Unmarshal([]byte(told), &v); err != nil {
		t.Fatal(err)
	}
	w := newWorker(t, 512)
	link := &dataplane.Link{Counters: &dataplane.Counters{}, Forwarder: echo{}}
	d, err := vnet.New(vnet.Options{
		Pairs: []vnet.PairOptions{{Worker: w, Link: link}}, StateFile: v.StateFile, Failed: func(err error) { panic(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetFeatures(v.Features); err != nil {
		t.Fatal(err)
	}
	if err := d.SetMemory([]vhostuser.Region{v.Region}); err != nil {
		t.Fatal(err)
	}
	for _, c := range v.Vrings {
		if err := d.StartVring(c); err != nil {
			t.Fatal(err)
		}
	}
	w.Do(func() { w.Add(link) })
	os.Stdout.WriteString("up\n")
	for parent := os.Getppid(); os.Getppid() == parent; {
		for range 1000 {
			w.Round()
		}
	}
}

// raise starts a victim and waits until it is up.
func raise(t *testing.T, guest *vnettest.Guest, file string) *exec.Cmd {
	t.Helper()
	v := victim{StateFile: file, Features: guest.Features(), Region: guest.Region()}
	child := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.timeout=5m")
	pass := func(fd int) int {
		child.ExtraFiles = append(child.ExtraFiles, os.NewFile(uintptr(dup(t, fd)), "passed"))
		return 2 + len(child.ExtraFiles)
	}
	v.Region.FD = pass(guest.FD)
	for q := range v.Vrings {
		c := guest.Vring(q)
		c.Kick, c.Call, c.Err = pass(c.Kick), pass(c.Call), -1
		v.Vrings[q] = c
	}
	told, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	child.Env = append(os.Environ(), victimEnv+"="+string(told))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = child.Process.Kill(), child.Wait() })
	for _, f := range child.ExtraFiles {
		f.Close()
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "up\n" {
		t.Fatalf("the device does not start: %q, %v", line, err)
	}
	return child
}

func TestKilled(t *testing.T) {
	kills := 25
	if testing.Short() {
		kills = 4
	}
	for name, features := range formats {
		t.Run(name, func(t *testing.T) {
			guest, err := vnettest.New(vnettest.Options{
				QueueSize: 32, BufferSize: 256, Features: vnet.FeatureVersion1 | vnet.FeatureMrgRxbuf | features,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(guest.Close)
			file := filepath.Join(stateDir(t), "state")
			var sent, came, last uint32
			// drive sends and receives for a while: each number once at most within one life, and none that was not sent.
			drive := func(done func() bool) {
				for !done() {
					for range 8 {
						if guest.Send(number(sent)) == nil {
							sent++
						}
					}
					for {
						b, err := guest.Recv()
						if err != nil {
							t.Fatal(err)
						}
						if b == nil {
							break
						}
						l := life{TB: t}
						n := l.numberOf(b)
						if n >= sent || n+64 < last {
							t.Fatalf("frame %d came, of %d, after %d", n, sent, last)
						}
						last = n
						came++
					}
				}
			}
			moved := 0
			for n := 0; n < kills || moved == 0 && n < 20*kills; n++ { // short lives, of which all may have passed without a CPU
				child := raise(t, guest, file)
				before := came
				until := time.Now().Add(time.Duration(1+rand.IntN(30)) * time.Millisecond)
				drive(func() bool { return time.Now().After(until) })
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = child.Wait()
				if came > before {
					moved++
				}
			}
			raise(t, guest, file)
			goal, deadline := came+3000, time.Now().Add(time.Minute)
			drive(func() bool {
				if time.Now().After(deadline) {
					t.Fatalf("%d frames sent, %d came, then it stands still", sent, came)
				}
				return came >= goal
			})
			wait(t, "chains do not come back", func() bool {
				drive(func() func() bool { n := 0; return func() bool { n++; return n > 1 } }())
				return guest.Tx.Free() > 0
			})
			t.Logf("%d frames, %d came, %d of %d lives moved some", sent, came, moved, kills)
			if moved == 0 {
				t.Error("no life moved a frame")
			}
		})
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
