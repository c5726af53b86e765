package blk

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Reason leaves out of an error of the network what the address has said already.
func Reason(err error) error {
	var e *net.OpError
	if errors.As(err, &e) && e.Err != nil {
		err = e.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// Unreached is the reason why a server was not reached, with what to do about it: to start it, as the sentence calls it, or to correct where it was looked for.
func Unreached(err error, server, where string) error {
	err = Reason(err)
	var name *net.DNSError
	var late net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: start %s, or correct %s", err, server, where)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return fmt.Errorf("%w: see that the host is up and has a route, or correct it", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: let shuntd write to the socket, or run it as root", err)
	case errors.As(err, &name):
		return fmt.Errorf("%w: correct the host, or see to the name server", err)
	case errors.As(err, &late) && late.Timeout():
		return fmt.Errorf("%w: see that %s runs, and that nothing between drops its packets", err, server)
	}
	return err
}
