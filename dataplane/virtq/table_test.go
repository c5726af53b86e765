package virtq

import (
	"slices"
	"testing"
)

// TestOffer: of chains that were taken, completed in any order and then let go of, the next device takes those that were not completed, in their order, and the driver
// gets each of all back once.
func TestOffer(t *testing.T) {
	for _, m := range []mode{{}, {packed: true}, {packed: true, indirect: true}} {
		for _, base := range []uint16{0, 5, 0x7ffc} {
			if m.packed {
				base = base&7 | PackedStart
			}
			const size = 8
			p := newPair(t, size, base, m)
			var heads []uint16
			for i := range uint32(5) {
				head, ok := p.driver.Add([]Buffer{{Addr: data + uint64(16*i), Len: i + 1}}, nil)
				if !ok {
					t.Fatal("no room")
				}
				heads = append(heads, head)
			}
			p.driver.Publish()
			l := p.layout(p.file)
			var table Descriptors
			taken := map[uint16]Descriptor{}
			for range 4 {
				if m.packed {
					table, _ = l.Descriptors(size)
				}
				at := p.device.Base()
				if n, err := p.device.Available(); n == 0 || err != nil {
					t.Fatal(n, err)
				}
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				if m.packed {
					taken[p.chain.Head] = table.At(at)
				}
			}
			p.device.Complete(heads[3], 0)
			p.device.Complete(heads[1], 0)
			p.device.Publish()
			at := p.device.UsedBase()
			for i, head := range []uint16{heads[0], heads[2]} {
				if m.packed {
					table.Offer(at, taken[head])
					if !table.Offered(at) {
						t.Error("it is not the driver's offer")
					}
					at = table.Behind(at, 1)
				} else {
					l.Offer(size, at+uint16(i), head)
				}
			}
			p.device.Rewind()
			p.replace(t, p.options(size, p.device.Base(), p.device.Base()))
			if !m.packed && (l.UsedIndex() != p.device.Base() || l.AvailIndex() != base+5) {
				t.Errorf("used %d, avail %d", l.UsedIndex(), l.AvailIndex())
			}
			var again []uint16
			for range 3 {
				if n, err := p.device.Available(); n == 0 || err != nil {
					t.Fatal(n, err)
				}
				if err := p.device.Next(p.chain); err != nil {
					t.Fatal(err)
				}
				if n := len(p.chain.Readable[0]); n != slices.Index(heads, p.chain.Head)+1 {
					t.Errorf("chain %d has %d bytes", p.chain.Head, n)
				}
				again = append(again, p.chain.Head)
				p.device.Complete(p.chain.Head, 0)
			}
			p.device.Publish()
			if want := []uint16{heads[0], heads[2], heads[4]}; !slices.Equal(again, want) {
				t.Errorf("%v, base %#x: taken again: %v, want %v", m, base, again, want)
			}
			back := map[uint16]bool{}
			for head, _, ok, err := p.driver.Used(); ok; head, _, ok, err = p.driver.Used() {
				if err != nil || back[head] {
					t.Fatal(head, err)
				}
				back[head] = true
			}
			if len(back) != 5 {
				t.Errorf("%v, base %#x: %d chains came back", m, base, len(back))
			}
			if p.chain.Clear(); len(p.chain.Readable) > 0 || p.chain.views[:1][0] != nil {
				t.Error("a cleared chain has views")
			}
		}
	}
}
