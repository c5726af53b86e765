package virtq

import (
	"testing"

	"pgregory.net/rapid"
)

// passed is crossed by the letter of virtio 1.2, 2.7.10: publishing the entries before … now-1 passes the one that the event names.
func passed(event, now, before uint16) bool {
	for i := before; i != now; i++ {
		if i == event {
			return true
		}
	}
	return false
}

func TestCrossed(t *testing.T) {
	for _, before := range []uint16{0, 1, 255, 32767, 32768, 65534, 65535} {
		for step := range uint16(20) {
			for event := -20; event < 40; event++ {
				e := before + uint16(event)
				if got, want := crossed(e, before+step, before), passed(e, before+step, before); got != want {
					t.Errorf("event %d, from %d to %d: %v, want %v", e, before, before+step, got, want)
				}
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		event, now, before := rapid.Uint16().Draw(t, "event"), rapid.Uint16().Draw(t, "now"), rapid.Uint16().Draw(t, "before")
		if got, want := crossed(event, now, before), passed(event, now, before); got != want {
			t.Fatalf("event %d, from %d to %d: %v, want %v", event, before, now, got, want)
		}
	})
}

// The bits on the wire: what Arm and Disarm write, and what makes Publish report that the other side wants to know.
func TestNotificationFields(t *testing.T) {
	r := newRig(t, DeviceOptions{Base: 65535})
	flags := func() uint16 { return uint16(r.file[rigUsed]) | uint16(r.file[rigUsed+1])<<8 }
	if flags() != usedNoNotify {
		t.Error("a fresh queue is polled, so it wants no kicks")
	}
	if r.device.Arm(); flags() != 0 {
		t.Error("armed, and says that it wants no kicks")
	}
	if r.device.Disarm(); flags() != usedNoNotify {
		t.Error("disarmed, and says that it wants kicks")
	}
	publish := func() bool { r.device.Complete(0, 0); return r.device.Publish() }
	if r.device.Publish() {
		t.Error("nothing was used, and the driver is to be called")
	}
	if !publish() {
		t.Error("the driver wants calls, and is not called")
	}
	r.file[rigAvail] = availNoInterrupt
	if publish() {
		t.Error("the driver wants no calls, and is called")
	}

	r = newRig(t, DeviceOptions{Base: 65535, EventIdx: true})
	event := func() uint16 { return uint16(r.file[rigUsed+4+8*16]) | uint16(r.file[rigUsed+5+8*16])<<8 }
	if event() != 65534 {
		t.Errorf("avail_event of a polled queue is %d", event())
	}
	if r.device.Arm(); event() != 65535 {
		t.Errorf("avail_event of an armed queue is %d", event())
	}
	wants := func(index uint16) { r.file[rigAvail+4+2*16], r.file[rigAvail+5+2*16] = byte(index), byte(index>>8) }
	wants(65535)
	if !publish() {
		t.Error("element 65535 was used, and the driver is not called")
	}
	if publish() {
		t.Error("the driver is called twice")
	}
	wants(4)
	for i := uint16(1); i < 10; i++ {
		if got := publish(); got != (i == 4) {
			t.Errorf("element %d: call is %v", i, got)
		}
	}
	r.device.Complete(0, 0)
	r.device.Complete(0, 0)
	wants(11)
	if !r.device.Publish() {
		t.Error("elements 10 and 11 were used at once, and the driver that waits for 11 is not called")
	}
}
