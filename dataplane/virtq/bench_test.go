package virtq

import (
	"testing"

	"github.com/shuntio/shunt/dataplane/guestmem"
	"github.com/shuntio/shunt/dataplane/shm"
)

// A batch of chains goes to the device and comes back, as on a worker that polls. The driver's part is in it: there is no way to
// have a packed ring filled at no cost.
func BenchmarkBatch(b *testing.B) {
	const size, batch = 256, 64
	for _, m := range []struct {
		name            string
		packed, inOrder bool
		pieces          int
	}{{"split", false, false, 1}, {"split in order", false, true, 1}, {"packed", true, false, 1}, {"packed in order", true, true, 1},
		{"split of 3", false, false, 3}, {"packed of 3", true, false, 3}} {
		b.Run(m.name, func(b *testing.B) {
			fd, mapping := benchMemory(b)
			memory, err := guestmem.Open([]guestmem.Region{{Size: 1 << 20, FD: fd}})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { memory.Free() })
			layout := Layout{Desc: mapping, Avail: mapping[0x4000:], Used: mapping[0x8000:]}
			driver, err := NewDriver(DriverOptions{Layout: layout, Size: size, Packed: m.packed, InOrder: m.inOrder})
			if err != nil {
				b.Fatal(err)
			}
			base := uint16(0)
			if m.packed {
				base = PackedStart
			}
			device, err := NewDevice(DeviceOptions{Layout: layout, Size: size, Memory: memory, Packed: m.packed, InOrder: m.inOrder, Base: base, UsedBase: base})
			if err != nil {
				b.Fatal(err)
			}
			chain, buffers := NewChain(size), make([]Buffer, m.pieces)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				for k := range batch {
					for j := range buffers {
						buffers[j] = Buffer{Addr: 0x10000 + uint64(k)*2048 + uint64(j)*64, Len: 60}
					}
					driver.Add(buffers, nil)
				}
				driver.Publish()
				n, _ := device.Available()
				device.Hint(n)
				for range n {
					if err := device.Next(chain); err != nil {
						b.Fatal(err)
					}
					device.Complete(chain.Head, 0)
				}
				device.Publish()
				for {
					if _, _, ok, _ := driver.Used(); !ok {
						break
					}
				}
			}
		})
	}
}

func benchMemory(b *testing.B) (fd int, bytes []byte) {
	fd, err := shm.NewMemFD("virtq-bench", 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	mapping, err := shm.Map(shm.MapOptions{FD: fd, Length: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { mapping.Free() })
	return fd, mapping.Bytes()
}
