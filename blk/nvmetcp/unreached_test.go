package nvmetcp

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Why a controller was not reached comes with what to do about it.
func TestUnreachedSaysWhatToDo(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Err: &os.SyscallError{Syscall: "connect", Err: unix.ECONNREFUSED}}, "connection refused: start it, or correct host and port"},
		{unix.EHOSTUNREACH, "no route to host: see that the host is up and has a route"},
		{&net.DNSError{Err: "no such host", Name: "nowhere"}, "no such host: correct the host, or see to the name server"},
		{os.ErrDeadlineExceeded, "i/o timeout: see that it runs, and that nothing between drops its packets"},
		{errors.New("anything"), "anything"},
	} {
		if err := unreached(test.err); !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.err, err, test.want)
		}
	}
}
