package uring

import (
	"encoding/binary"
	"fmt"

	"github.com/shuntio/shunt/dataplane/shm"
	"golang.org/x/sys/unix"
)

// Memory is memory that the kernel may see: it neither moves nor goes away before Free.
type Memory struct{ mapping *shm.Mapping }

// NewMemory maps n bytes of zeroes, on any goroutine.
func NewMemory(n int) (*Memory, error) {
	m, err := shm.Map(shm.MapOptions{FD: -1, Length: n, Populate: true})
	if err != nil {
		return nil, err
	}
	return &Memory{m}, nil
}

// Bytes is all of it.
func (m *Memory) Bytes() []byte { return m.mapping.Bytes() }

// Free gives it back. No operation may have it any more.
func (m *Memory) Free() error { return m.mapping.Free() }

// Address is a socket's address, as struct sockaddr where the kernel can see it.
type Address struct {
	memory *Memory
	at     uint64
	length int
}

// sizeofSockaddrUn is the longest address we take.
const sizeofSockaddrUn = 110

// NewAddress takes an address of IPv4, IPv6 or a unix socket.
func NewAddress(a unix.Sockaddr) (*Address, error) {
	raw := make([]byte, 0, sizeofSockaddrUn)
	native, big := binary.NativeEndian, binary.BigEndian
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		raw = big.AppendUint16(native.AppendUint16(raw, unix.AF_INET), uint16(a.Port))
		raw = append(append(raw, a.Addr[:]...), make([]byte, 8)...)
	case *unix.SockaddrInet6:
		raw = big.AppendUint16(native.AppendUint16(raw, unix.AF_INET6), uint16(a.Port))
		raw = append(native.AppendUint32(raw, 0), a.Addr[:]...) // no flow
		raw = native.AppendUint32(raw, a.ZoneId)
	case *unix.SockaddrUnix:
		raw = append(native.AppendUint16(raw, unix.AF_UNIX), a.Name...)
		if a.Name != "" && a.Name[0] == '@' {
			raw[2] = 0 // abstract: named by all its bytes
		} else {
			raw = append(raw, 0)
		}
		if len(raw) > sizeofSockaddrUn {
			return nil, fmt.Errorf("path of a unix socket has %d bytes, at most %d are possible: %s", len(a.Name), sizeofSockaddrUn-3, a.Name)
		}
	default:
		return nil, fmt.Errorf("%T is no address of IPv4, IPv6 or a unix socket", a)
	}
	m, err := NewMemory(len(raw))
	if err != nil {
		return nil, err
	}
	copy(m.Bytes(), raw)
	return &Address{memory: m, at: uint64(shm.Address(m.Bytes())), length: len(raw)}, nil
}

// Free gives its memory back.
func (a *Address) Free() error { return a.memory.Free() }
