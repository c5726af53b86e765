package blk_test

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
	"github.com/shuntio/shunt/dataplane"
	"github.com/shuntio/shunt/dataplane/dataplanetest"
	"github.com/shuntio/shunt/dataplane/shm"
	"github.com/shuntio/shunt/dataplane/uring"
	"github.com/shuntio/shunt/dataplane/vhostuser"
	"golang.org/x/sys/unix"
)

// served is a device of a volume on a socket, with a front-end.
type served struct {
	testing.TB
	store   *blktest.Store
	volume  *blk.Volume
	device  *blk.Device
	backend *vhostuser.Backend
	front   *vhostuser.Frontend
}

func openVolume(tb testing.TB, o blktest.Options, v blk.VolumeOptions) (*blk.Volume, *blktest.Store) {
	tb.Helper()
	var store *blktest.Store
	v.Name = "disk"
	v.Open = func(w blk.Watcher) (blk.Store, error) {
		o.Watcher = w
		store = blktest.New(o)
		return store, nil
	}
	volume, err := blk.OpenVolume(v)
	check(tb, err)
	return volume, store
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// workers run until the test ends.
func workers(tb testing.TB, n int) []blk.Host {
	tb.Helper()
	var hosts []blk.Host
	for _, w := range dataplanetest.NewWorkers(tb, n, 64) {
		ring, err := uring.Open(uring.Options{Entries: 64})
		check(tb, err)
		done := make(chan error)
		go func() { done <- w.Run() }()
		tb.Cleanup(func() {
			w.Stop()
			if err := <-done; err != nil {
				tb.Error(err)
			}
			_ = ring.Close()
		})
		hosts = append(hosts, blk.Host{Worker: w, Ring: ring})
	}
	return hosts
}

// TestRegisteredWithRings: real ones know the guest's memory while the front-end gives it.
func TestRegisteredWithRings(t *testing.T) {
	v, _ := openVolume(t, blktest.Options{Size: 1 << 20}, blk.VolumeOptions{})
	hosts := blktest.Run(t, 2)
	d, err := blk.NewDevice(blk.DeviceOptions{Volume: v, Queues: append(hosts, hosts[0]), Registered: true})
	check(t, err)
	d.Offer()
	const size = 4 << 20
	fd, err := shm.NewMemFD("shunt-test-guest", size)
	check(t, err)
	defer unix.Close(fd)
	check(t, d.SetMemory([]vhostuser.Region{{UserAddr: 1 << 32, Size: size, FD: fd}}))
	if s := d.State(); s.Registered != size || s.Unregistered != nil {
		t.Errorf("%d bytes are registered: %v", s.Registered, s.Unregistered)
	}
	d.Disconnected()
	check(t, d.Close())
	check(t, v.Close())
}

func serve(tb testing.TB, o blktest.Options, v blk.VolumeOptions, queues int) *served {
	tb.Helper()
	s := &served{TB: tb}
	s.volume, s.store = openVolume(tb, o, v)
	var err error
	s.device, err = blk.NewDevice(blk.DeviceOptions{Volume: s.volume, Queues: workers(tb, queues), ConfigChanged: func() { s.backend.ConfigChanged() }})
	check(tb, err)
	s.device.Start()
	path := filepath.Join(tb.TempDir(), "s")
	s.backend, err = vhostuser.Listen(vhostuser.Options{Path: path}, s.device)
	check(tb, err)
	s.front, err = vhostuser.Dial(path)
	check(tb, err)
	tb.Cleanup(func() {
		check(tb, s.front.Close())
		check(tb, s.backend.Close())
		check(tb, s.device.Close())
		check(tb, s.volume.Close())
	})
	check(tb, s.front.Negotiate(^uint64(0), ^uint64(0)))
	return s
}

// TestServed: what a front-end sees of a volume, over its socket.
func TestServed(t *testing.T) {
	s := serve(t, blktest.Options{Size: 1 << 20}, blk.VolumeOptions{Serial: "of-the-volume"}, 2)
	if f := s.front.Features(); f&(blk.FeatureMQ|blk.FeatureFlush|blk.FeatureConfigWCE) != blk.FeatureMQ|blk.FeatureFlush|blk.FeatureConfigWCE {
		t.Errorf("features %#x", f)
	}
	const wants = vhostuser.ProtocolConfig | vhostuser.ProtocolInflight | vhostuser.ProtocolLogShmfd | vhostuser.ProtocolBackendReq |
		vhostuser.ProtocolResetDevice | vhostuser.ProtocolMemSlots | vhostuser.ProtocolMQ
	if p := s.front.Protocol(); p&wants != wants {
		t.Errorf("without %v", vhostuser.ProtocolNames(wants&^p))
	}
	if n, err := s.front.QueueNum(); n != 2 || err != nil {
		t.Errorf("%d queues, %v", n, err)
	}
	capacity := func() uint64 {
		t.Helper()
		b, err := s.front.Config(0, 60)
		check(t, err)
		return binary.LittleEndian.Uint64(b) * 512
	}
	if n := capacity(); n != 1<<20 {
		t.Errorf("%d bytes", n)
	}
	check(t, s.front.SetConfig(32, []byte{0}, false))
	if !s.device.State().WriteThrough {
		t.Error("the device is not in write-through mode")
	}
	if err := s.front.SetConfig(0, make([]byte, 8), false); err == nil {
		t.Error("a driver changed the disk's size")
	}
	channel, err := s.front.OpenChannel()
	check(t, err)
	defer channel.Close()
	s.store.Resize(2 << 20)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if r, err := channel.Next(ctx, 0); r != vhostuser.BackendConfigChange || err != nil {
		t.Fatalf("request %d, %v", r, err)
	}
	if n := capacity(); n != 2<<20 {
		t.Errorf("%d bytes after the disk has grown", n)
	}
	check(t, s.front.Reset())
}

// TestReadOnlyVolume: what the operator says counts, also where the store could be written.
func TestReadOnlyVolume(t *testing.T) {
	s := serve(t, blktest.Options{Size: 1 << 20}, blk.VolumeOptions{ReadOnly: true}, 1)
	if f := s.front.Features(); f&blk.FeatureRO == 0 || f&(blk.FeatureDiscard|blk.FeatureWriteZeroes|blk.FeatureMQ) != 0 {
		t.Errorf("features %#x", f)
	}
}

// TestRefusedDevices: each mistake is one clear sentence, and leaves nothing behind.
func TestRefusedDevices(t *testing.T) {
	v, _ := openVolume(t, blktest.Options{Size: 1 << 20, Lanes: 1}, blk.VolumeOptions{})
	hosts := workers(t, 2)
	for why, queues := range map[string][]blk.Host{
		"0 queues":        nil,
		"257 queues":      make([]blk.Host, blk.MaxQueues+1),
		"by 1 workers at": hosts,
	} {
		if _, err := blk.NewDevice(blk.DeviceOptions{Volume: v, Queues: queues}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
	d, err := blk.NewDevice(blk.DeviceOptions{Volume: v, Queues: []blk.Host{hosts[1], hosts[1]}})
	check(t, err)
	var _ dataplane.Source = d.Queues()[0]
	check(t, d.Close())
	check(t, v.Close())
}
