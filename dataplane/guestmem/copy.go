package guestmem

import (
	"runtime"

	"github.com/shuntio/shunt/dataplane/shm"
)

// Copy copies the shorter of the two, as copy does, where one or both lie in a guest's memory. The guest can truncate the file behind that at any
// time: a fault inside dst or src is false, and how much was copied is unknown. Any other panic goes on.
//
// The calling goroutine needs debug.SetPanicOnFault, which every worker has; without it the fault ends the process.
func Copy(dst, src []byte) (ok bool) {
	defer contain(&ok, dst, src)
	copy(dst, src)
	return true
}

// Readable tells whether all of b is there now, as Copy would find it, at the price of a byte of each page.
func Readable(b []byte) (ok bool) {
	defer contain(&ok, b, nil)
	const page = 4096
	any := byte(0)
	for at := 0; at < len(b); at += page - int(shm.Address(b[at:])%page) {
		any |= b[at]
	}
	runtime.KeepAlive(any)
	return true
}

// contain ends a panic that is a fault of dst or src.
func contain(ok *bool, dst, src []byte) {
	r := recover()
	if r == nil {
		return
	}
	fault, is := r.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !is || !within(dst, fault.Addr()) && !within(src, fault.Addr()) {
		panic(r)
	}
	*ok = false
}

func within(b []byte, address uintptr) bool { return address-shm.Address(b) < uintptr(len(b)) }
