package vhostuser

import (
	"encoding/binary"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzMessages sends a session whatever bytes and descriptors the fuzzer thinks of. The fake device holds the
// session to the promises of Device; beside that no descriptor may stay open, none may be closed twice, and nothing may panic.
//
// The input is a sequence of records: a byte for the descriptors (see memoryLink), then a message; what is announced
// beyond the largest payload is the next record's.
func FuzzMessages(f *testing.F) {
	link := newMemoryLink(f)
	for _, seed := range seeds(f, link) {
		f.Add(seed)
	}
	log := newLogger(slog.New(slog.DiscardHandler), "fuzz")
	f.Fuzz(func(t *testing.T, input []byte) {
		link.input, link.rest, link.replies = input, 0, link.replies[:0]
		d := newFake(t)
		d.offer.Vrings = 3
		if len(input) > 0 && input[0]&0x80 != 0 { // some devices refuse
			names := []string{"start", "update", "memory", "add", "remove", "stop", "features", "reset"}
			if input[0]&0x04 != 0 {
				names = []string{"log", "inflight", "rarp", "log true", "inflight true", "log false", "inflight false", "update"}
			}
			d.fail = map[string]error{names[input[0]>>4&7]: io.ErrNoProgress}
		}
		if len(input) > 0 && input[0]&0x08 != 0 {
			d.offer.Features |= featurePacked
		}
		before := lowestFree(t)
		s := newSession(link, d, log)
		if err := s.run(); err == nil {
			t.Error("a session ends for a reason")
		}
		s.fail(s.begun.Load(), io.ErrNoProgress) // as somebody may at any time: no descriptor is left to signal
		if after := lowestFree(t); after != before {
			t.Errorf("lowest free descriptor is %d, was %d", after, before)
		}
		for _, fd := range link.pool {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				t.Fatalf("descriptor %d is not ours any more: %v", fd, err)
			}
		}
		if d.gone != 1 || len(d.rings) != 0 {
			t.Errorf("device disconnected %d times, %d rings left", d.gone, len(d.rings))
		}
	})
}

// lowestFree is the descriptor the kernel would give out next: it changes when one is left open, or closed twice.
func lowestFree(t *testing.T) int {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	return fd
}

// seeds are the recorded conversations, and short ones that reach what those do not.
func seeds(tb testing.TB, link *memoryLink) (all [][]byte) {
	files, err := filepath.Glob("testdata/traces/*.txt")
	must(tb, err)
	for _, file := range files {
		link.input = nil
		for _, m := range readTrace(tb, file) {
			if m.fromFrontend {
				link.queue(m.bytes, link.kindOf(m.request()), m.fds)
			}
		}
		all = append(all, link.input)
	}
	g := &guest{}
	type step struct {
		request Request
		payload []byte
		fds     int
	}
	begin := []step{
		{SetProtocolFeatures, appendU64(nil, implemented), 0},
		{SetFeatures, appendU64(nil, FeatureProtocol|1<<32), 0},
		{SetMemTable, appendRegion(appendState(nil, 1, 0), g.region()), 1},
		{SetVringNum, appendState(nil, 0, 256), 0},
		{SetVringAddr, appendAddr(nil, g.ring(0)), 0},
		{SetVringKick, appendU64(nil, 0), 1},
		{SetVringEnable, appendState(nil, 0, 1), 0},
	}
	for _, more := range [][]step{
		{{ResetOwner, nil, 0}, {GetVringBase, appendState(nil, 0, 0), 0}},
		{{ResetDevice, nil, 0}, {SetVringErr, appendU64(nil, 0), 1}},
		{{AddMemReg, appendRegion(appendU64(nil, 0), Region{Size: pageSize}), 1},
			{RemMemReg, appendRegion(appendU64(nil, 0), g.region()), 1}, {GetMaxMemSlots, nil, 0}},
		{{SetMemTable, appendRegion(appendRegion(appendState(nil, 2, 0), g.region()), Region{Size: pageSize}), 2}},
		{{SetVringCall, appendU64(nil, 0), 1}, {SetVringCall, appendU64(nil, vringNoFD), 0}, {SetVringKick, appendU64(nil, 0), 1}},
		{{GetConfig, append(appendConfigHead(nil, 0, 8, 0), make([]byte, 8)...), 0},
			{SetConfig, append(appendConfigHead(nil, 0, 8, 1), make([]byte, 8)...), 0}, {NetSetMTU, appendU64(nil, 1500), 0}},
		{{SetLogBase, appendU64(appendU64(nil, 64), 0), 1}, {SetFeatures, appendU64(nil, FeatureProtocol|FeatureLogAll|1<<32), 0},
			{SetVringAddr, appendAddr(nil, g.ring(0)), 0}, {SetLogFD, nil, 1}, {SetLogBase, appendU64(appendU64(nil, 128), 8), 1}},
		{{GetVringBase, appendState(nil, 0, 0), 0}, {GetInflightFD, InflightFile{Queues: 3, Size: 256}.payload(), 0},
			{SetInflightFD, InflightFile{Bytes: 1 << 20, Queues: 3, Size: 256}.payload()[:inflightMessage], 1},
			{SetVringKick, appendU64(nil, 0), 1}},
		{{SetBackendReqFD, nil, 1}, {SetBackendReqFD, nil, 1}, {SendRARP, []byte{2, 0, 0, 0, 0, 1, 0, 0}, 0}},
		{{SetVringBase, appendState(nil, 1, 7), 0}, {SetStatus, appendU64(nil, 0), 0}, {GetStatus, nil, 0}, {GetQueueNum, nil, 0}},
	} {
		link.input = nil
		for i, s := range append(begin[:len(begin):len(begin)], more...) {
			b := seal(append(appendHeader(nil, s.request, flagVersion), s.payload...))
			if i%2 == 1 {
				binary.NativeEndian.PutUint32(b[4:], flagVersion|flagNeedReply)
			}
			link.queue(b, link.kindOf(s.request), s.fds)
		}
		all = append(all, link.input)
	}
	if len(all) < 10 {
		tb.Fatalf("only %d seeds", len(all))
	}
	return all
}
