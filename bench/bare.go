package bench

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/frame"
	"github.com/shuntio/shunt/dataplane/wire"
	"github.com/shuntio/shunt/dataplane/xsk"
	"github.com/shuntio/shunt/pinning"
	"golang.org/x/sys/unix"
)

// BareOptions configure NewBare. Interface must be set.
type BareOptions struct {
	// Interface in the calling thread's network namespace, whose peer swallows what it gets.
	Interface string
	// Queue of it to send from.
	Queue int
	// FrameLen is the length of each frame in bytes. Zero: 114, a 64-byte one with what VXLAN puts in front.
	FrameLen int
	// CPU is where it runs.
	CPU int
}

// Bare transmits ready-made frames by AF_XDP and does nothing else. What a guest's frames cost more than that is the engine's share.
type Bare struct {
	o      BareOptions
	pool   *frame.Pool
	port   *xsk.Port
	on     atomic.Bool
	quit   atomic.Bool
	thread atomic.Int64
	ended  sync.WaitGroup
	failed error
}

// NewBare makes a transmitter that is silent until On.
func NewBare(o BareOptions) (*Bare, error) {
	o.FrameLen = defaulted(o.FrameLen, 114)
	b := &Bare{o: o}
	const frames = 4096
	memory, err := frame.NewMemory(make([]byte, frames*frame.ChunkSize))
	if err != nil {
		return nil, err
	}
	if b.pool, err = memory.NewPool(0, frames); err != nil {
		return nil, err
	}
	device, err := xsk.LookupDevice(o.Interface)
	if err != nil {
		return nil, err
	}
	socket, err := xsk.NewUMEM(memory).Open(socketOptions(device, o.Queue))
	if err != nil {
		return nil, err
	}
	b.write()
	if b.port, err = xsk.NewPort(xsk.PortOptions{Socket: socket, Pool: b.pool, Counters: &dataplane.Counters{}, Fill: 64}); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	b.ended.Add(1)
	go func() {
		defer b.ended.Done()
		b.failed = b.run()
	}()
	return b, nil
}

// write puts the frame into every chunk, where it will be sent from.
func (b *Bare) write() {
	all := make([]*frame.Frame, b.pool.Len())
	for i := range all {
		f := b.pool.Get()
		head := f.Append(b.o.FrameLen)
		wire.Ethernet(head).Set(remoteMAC, uplinkMAC, wire.EtherTypeIPv4)
		wire.IPv4(head[14:]).Set(wire.IPv4Fields{
			TotalLen: uint16(b.o.FrameLen - 14), TTL: 64, Protocol: wire.ProtoUDP, Source: localVTEP.As4(), Destination: remoteVTEP.As4(),
		})
		wire.UDP(head[34:]).Set(9, 9, uint16(b.o.FrameLen-34), 0)
		all[i] = f
	}
	b.pool.PutAll(all)
}

// run sends vectors as a worker does, until Close.
func (b *Bare) run() error {
	runtime.LockOSThread() // never unlocked: it is pinned
	if err := pinning.Apply(b.o.CPU); err != nil {
		return err
	}
	b.thread.Store(int64(unix.Gettid()))
	var vector [dataplane.Quantum]*frame.Frame
	for !b.quit.Load() {
		if !b.on.Load() {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		n := 0
		for ; n < len(vector); n++ {
			f := b.pool.Get()
			if f == nil {
				break
			}
			f.Append(b.o.FrameLen)
			vector[n] = f
		}
		b.port.Transmit(vector[:n], b.pool)
		b.pool.PutAll(vector[:n])
		b.port.Flush()
	}
	return nil
}

// On lets it send as fast as it goes, or be silent.
func (b *Bare) On(on bool) { b.on.Store(on) }

// Threads are its threads' directory under /proc, when it runs.
func (b *Bare) Threads() string {
	for b.thread.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	return fmt.Sprintf("/proc/self/task/%d", b.thread.Load())
}

// Close ends it, and tells what went wrong meanwhile.
func (b *Bare) Close() error {
	b.quit.Store(true)
	b.ended.Wait()
	return errors.Join(b.failed, b.port.Close())
}
