package blk_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/shuntio/shunt/blk"
	"golang.org/x/sys/unix"
)

// Why a server was not reached comes with what to do about it, and without the address.
func TestUnreached(t *testing.T) {
	for _, test := range []struct {
		err           error
		server, where string
		want          string
	}{
		{&net.OpError{Op: "dial", Err: &os.SyscallError{Syscall: "connect", Err: unix.ECONNREFUSED}}, "it", "host and port", "connection refused: start it, or correct host and port"},
		{unix.ECONNREFUSED, "the server", "host and port", "connection refused: start the server, or correct host and port"},
		{unix.ENOENT, "the server", "the socket's path", "no such file or directory: start the server, or correct the socket's path"},
		{unix.EACCES, "the server", "the socket's path", "permission denied: let shuntd write to the socket"},
		{unix.EHOSTUNREACH, "it", "host and port", "no route to host: see that the host is up and has a route"},
		{unix.ENETUNREACH, "it", "host and port", "network is unreachable: see that the host is up and has a route"},
		{&net.DNSError{Err: "no such host", Name: "nowhere"}, "it", "host and port", "no such host: correct the host, or see to the name server"},
		{os.ErrDeadlineExceeded, "it", "host and port", "i/o timeout: see that it runs, and that nothing between drops its packets"},
		{errors.New("anything"), "it", "host and port", "anything"},
	} {
		err := blk.Unreached(test.err, test.server, test.where)
		if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "dial") || !errors.Is(err, blk.Reason(test.err)) {
			t.Errorf("%v: %v, want %q", test.err, err, test.want)
		}
	}
}
