package nvmetcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// DiscoveryLog is a discovery controller's log page 70h.
type DiscoveryLog struct {
	// Generation counts changes of the log; it wraps.
	Generation uint64
	Entries    []DiscoveryEntry
}

// DiscoveryEntry is a way to a subsystem, or to another discovery controller.
type DiscoveryEntry struct {
	// Transport is "tcp", "rdma", "fc", "loop" or a number; Family "ipv4", "ipv6", "ib", "fc" or a number.
	Transport, Family string
	// Subsystem is "nvm", "discovery" (the controller asked, itself) or "referral" (another one to ask).
	Subsystem string
	Port      uint16
	// Address of the controller; Service is its port.
	Address, Service string
	NQN              string
	// TLS: the connection must be secured, or may be.
	TLSRequired, TLSSupported bool
	// KATO hints that the log's owner keeps connections (persistent discovery).
	Persistent bool
}

// Log pages of this many entries are believed; more are cut.
const maxDiscovery = 4096

// discoveryEntry is the length of an entry, and of what comes before the first.
const discoveryEntry = 1024

// Discover asks a discovery controller what it knows. Without a port: 8009.
func Discover(ctx context.Context, address string) (*DiscoveryLog, error) {
	if _, _, err := net.SplitHostPort(address); err != nil && address != "" {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "8009")
	}
	o := Options{Address: address, NQN: DiscoveryNQN}
	if err := o.check(); err != nil {
		return nil, err
	}
	a, err := associate(ctx, &o, 0)
	if err != nil {
		return nil, fmt.Errorf("discover subsystems at %s: %w", o.Address, err)
	}
	defer a.close()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*o.ConnectTimeout, errors.New("the discovery log was not read in time"))
	defer cancel()
	log, err := a.discover(ctx)
	if err != nil {
		return nil, fmt.Errorf("discover subsystems at %s: %w", o.Address, err)
	}
	stop, cancelStop := context.WithTimeout(ctx, time.Second)
	defer cancelStop()
	a.shutdown(stop) // for politeness
	return log, nil
}

// discover reads the log in pieces, and all of it again if it changed meanwhile.
func (a *association) discover(ctx context.Context) (*DiscoveryLog, error) {
	for range 8 {
		head, err := a.admin.logPage(ctx, "of discovery", logDiscovery, 0, 0, discoveryEntry)
		if err != nil {
			return nil, err
		}
		log := &DiscoveryLog{Generation: le.Uint64(head)}
		if format := le.Uint16(head[16:]); format != 0 {
			return nil, fmt.Errorf("the discovery log has record format %d; 0 is known", format)
		}
		count := min(le.Uint64(head[8:]), maxDiscovery)
		for at := uint64(0); at < count; {
			n := min(count-at, 4)
			b, err := a.admin.logPage(ctx, "of discovery", logDiscovery, 0, int64(discoveryEntry*(at+1)), int(discoveryEntry*n))
			if err != nil {
				return nil, err
			}
			for i := range n {
				log.Entries = append(log.Entries, parseDiscovery(b[discoveryEntry*i:][:discoveryEntry]))
			}
			at += n
		}
		if head, err = a.admin.logPage(ctx, "of discovery", logDiscovery, 0, 0, discoveryEntry); err != nil {
			return nil, err
		}
		if le.Uint64(head) == log.Generation {
			return log, nil
		}
	}
	return nil, errors.New("the discovery log changes faster than it can be read")
}

func parseDiscovery(b []byte) DiscoveryEntry {
	e := DiscoveryEntry{
		Transport: name(b[0], map[byte]string{1: "rdma", 2: "fc", 3: "tcp", 254: "loop"}),
		Family:    name(b[1], map[byte]string{1: "ipv4", 2: "ipv6", 3: "ib", 4: "fc", 254: "loop"}),
		Subsystem: name(b[2], map[byte]string{1: "referral", 2: "nvm", 3: "discovery"}),
		Port:      le.Uint16(b[4:]), Service: text(b[32:64]), NQN: text(b[256:512]), Address: text(b[512:768]),
		Persistent: le.Uint16(b[10:])&2 != 0,
	}
	switch b[3] & 3 { // TREQ
	case 1:
		e.TLSRequired, e.TLSSupported = true, true
	case 2:
		e.TLSSupported = b[0] == 3 && b[768] != 0
	}
	return e
}

func name(b byte, names map[byte]string) string {
	if s := names[b]; s != "" {
		return s
	}
	return fmt.Sprint(b)
}
