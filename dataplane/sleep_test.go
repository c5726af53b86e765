package dataplane_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/virtq"
	"golang.org/x/sys/unix"
)

// The litmus test of the sleep sequence: a driver and a device in two processes pass one chain back and forth. Each side sleeps when it
// has nothing to do, and is woken by the other's eventfd only if the other saw it asleep. If ever a side sleeps although
// there is work, and nobody wakes it, its sleep ends by the timeout and is counted as late. That must never happen.

const (
	litmusQueue = 16
	litmusChild = "SHUNT_LITMUS_ROUNDS"
	backstop    = 2 * time.Second // a lost wakeup, not a slow machine: the other side answers in microseconds
)

// Rings and one buffer, in a memfd that both processes map.
const (
	litmusAvail  = 1024
	litmusUsed   = 2048
	litmusBuffer = 4096
	litmusSize   = 8192
)

func litmusLayout(b []byte) virtq.Layout {
	return virtq.Layout{Desc: b, Avail: b[litmusAvail:], Used: b[litmusUsed:]}
}

func TestMain(m *testing.M) {
	if os.Getenv(litmusChild) != "" {
		litmusDevice()
		os.Exit(0)
	}
	if how := os.Getenv(crashChild); how != "" {
		crash(how)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSleepLitmus(t *testing.T) {
	rounds := 1_000_000
	switch {
	case os.Getenv("SHUNT_SOAK") != "":
		rounds = 100_000_000
	case testing.Short():
		rounds = 50_000
	}
	for _, packed := range []bool{false, true} {
		for _, eventIdx := range []bool{true, false} {
			t.Run(fmt.Sprintf("packed=%v eventIdx=%v", packed, eventIdx), func(t *testing.T) { litmus(t, rounds/4, packed, eventIdx) })
		}
	}
}

func litmus(t *testing.T, rounds int, packed, eventIdx bool) {
	memfd, err := shm.NewMemFD("litmus", litmusSize)
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(memfd), "memory")
	defer memory.Close()
	kick, call := eventFile(t), eventFile(t)
	mapping, err := shm.Map(shm.MapOptions{FD: memfd, Length: litmusSize})
	if err != nil {
		t.Fatal(err)
	}
	defer mapping.Free()

	driver := &pingDriver{rounds: rounds, kick: int(kick.Fd()), done: make(chan struct{})}
	driver.queue, err = virtq.NewDriver(virtq.DriverOptions{Layout: litmusLayout(mapping.Bytes()), Size: litmusQueue, Packed: packed, EventIdx: eventIdx})
	if err != nil {
		t.Fatal(err)
	}

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d", litmusChild, rounds),
		"SHUNT_LITMUS_PACKED="+strconv.FormatBool(packed), "SHUNT_LITMUS_EVENT_IDX="+strconv.FormatBool(eventIdx))
	child.ExtraFiles = []*os.File{memory, kick, call}
	child.Stderr = os.Stderr
	control, err := child.StdinPipe() // its end tells the child to stop, also if we die
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()

	w := litmusWorker(t.Fatal)
	w.Watch(int(call.Fd()), unix.POLLIN, true)
	w.Add(driver)
	began := time.Now()
	go w.Run()
	select {
	case <-driver.done:
	case <-time.After(time.Duration(rounds)*200*time.Microsecond + time.Minute):
		t.Errorf("%d of %d rounds after %v", driver.taken, rounds, time.Since(began))
	}
	w.Stop()
	w.Do(func() {})
	control.Close()
	report, _ := io.ReadAll(out)
	var deviceLate, deviceSleeps uint64
	if _, err := fmt.Sscan(string(report), &deviceLate, &deviceSleeps); err != nil {
		t.Fatalf("device reported %q: %v", report, err)
	}
	s := w.Stats()
	t.Logf("%d rounds in %v; sleeps: driver %d, device %d; ended by timeout: driver %d, device %d",
		rounds, time.Since(began).Round(time.Millisecond), s.Sleeps.Load(), deviceSleeps, s.Late.Load(), deviceLate)
	if s.Late.Load() != 0 || deviceLate != 0 {
		t.Errorf("rounds ended by a timeout: %d at the driver, %d at the device", s.Late.Load(), deviceLate)
	}
	if s.Sleeps.Load() == 0 || deviceSleeps == 0 {
		t.Error("a side never slept, so the test showed nothing")
	}
	if driver.err != nil {
		t.Error(driver.err)
	}
}

func litmusWorker(fatal func(...any)) *dataplane.Worker {
	memory, err := frame.NewMemory(make([]byte, frame.ChunkSize))
	if err != nil {
		fatal(err)
	}
	pool, err := memory.NewPool(0, 1)
	if err != nil {
		fatal(err)
	}
	w, err := dataplane.NewWorker(dataplane.WorkerOptions{Pool: pool, Idle: dataplane.Interrupt})
	if err != nil {
		fatal(err)
	}
	return w
}

func eventFile(t *testing.T) *os.File {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// dither wastes between nothing and some ten microseconds on the way to sleep, about what the other side takes to wake and
// answer, so that its answer comes at every point of that way.
func dither(r *rand.PCG) {
	for n := r.Uint64() % (1 << (r.Uint64() % 14)); n > 0; n-- {
		if r.Uint64() == 0 {
			return
		}
	}
}

// pingDriver adds one chain, waits for its return, adds the next.
type pingDriver struct {
	queue  *virtq.Driver
	rounds int
	taken  int
	kick   int
	flying bool
	random rand.PCG
	done   chan struct{}
	err    error
	buffer [1]virtq.Buffer
}

func (d *pingDriver) Poll() int {
	if d.taken == d.rounds || d.err != nil {
		return 0
	}
	if d.flying {
		_, _, ok, err := d.queue.Used()
		if err != nil {
			d.err = err
			close(d.done)
			return 0
		}
		if !ok {
			return 0
		}
		d.flying = false
		if d.taken++; d.taken == d.rounds {
			close(d.done)
			return 1
		}
	}
	d.buffer[0] = virtq.Buffer{Addr: litmusBuffer, Len: 64}
	d.queue.Add(nil, d.buffer[:])
	d.flying = true
	if d.queue.Publish() {
		shm.Signal(d.kick)
	}
	return 1
}

func (d *pingDriver) Flush()             {}
func (d *pingDriver) Arm() time.Duration { dither(&d.random); d.queue.Arm(); return backstop }
func (d *pingDriver) Pending() bool      { return d.queue.Pending() }
func (d *pingDriver) Disarm()            { d.queue.Disarm() }

// pongDevice returns each chain at once.
type pongDevice struct {
	queue  *virtq.Device
	chain  *virtq.Chain
	call   int
	random rand.PCG
}

func (d *pongDevice) Poll() int {
	n, err := d.queue.Available()
	if err != nil {
		panic(err)
	}
	if n == 0 {
		return 0
	}
	if err := d.queue.Next(d.chain); err != nil {
		panic(err)
	}
	d.queue.Complete(d.chain.Head, 64)
	if d.queue.Publish() {
		shm.Signal(d.call)
	}
	return 1
}

func (d *pongDevice) Flush()             {}
func (d *pongDevice) Arm() time.Duration { dither(&d.random); d.queue.Arm(); return backstop }
func (d *pongDevice) Pending() bool      { return d.queue.Pending() }
func (d *pongDevice) Disarm()            { d.queue.Disarm() }

// litmusDevice is the child process: memory, kick and call are its files 3, 4 and 5.
func litmusDevice() {
	fatal := func(args ...any) {
		fmt.Fprintln(os.Stderr, args...)
		os.Exit(1)
	}
	memory, err := guestmem.Open([]guestmem.Region{{Size: litmusSize, FD: 3}})
	if err != nil {
		fatal(err)
	}
	o := virtq.DeviceOptions{
		Layout: litmusLayout(memory.View(0, litmusSize)), Size: litmusQueue, Memory: memory,
		Packed: os.Getenv("SHUNT_LITMUS_PACKED") == "true", EventIdx: os.Getenv("SHUNT_LITMUS_EVENT_IDX") == "true",
	}
	if o.Packed {
		o.Base, o.UsedBase = virtq.PackedStart, virtq.PackedStart
	}
	q, err := virtq.NewDevice(o)
	if err != nil {
		fatal(err)
	}
	w := litmusWorker(fatal)
	w.Watch(4, unix.POLLIN, true)
	w.Add(&pongDevice{queue: q, chain: virtq.NewChain(litmusQueue), call: 5})
	go func() {
		_, _ = io.ReadAll(os.Stdin)
		w.Stop()
	}()
	if err := w.Run(); err != nil {
		fatal(err)
	}
	fmt.Println(w.Stats().Late.Load(), w.Stats().Sleeps.Load())
}
