package xsk

import (
	"testing"
	"unsafe"

	"github.com/shuntio/shunt/dataplane/shm"
)

// bytesOf is the memory of words.
func bytesOf(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
}

// mapMemory maps n bytes, as the daemon does, until the test ends.
func mapMemory(tb testing.TB, n int) []byte {
	tb.Helper()
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: n, Populate: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Free() })
	return m.Bytes()
}
