package nbd

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Why a server was not reached comes with what to do about it.
func TestUnreachedSaysWhatToDo(t *testing.T) {
	for _, test := range []struct {
		err     error
		network string
		want    string
	}{
		{unix.ECONNREFUSED, "tcp", "connection refused: start the server, or correct host and port"},
		{unix.ENOENT, "unix", "no such file or directory: start the server, or correct the socket's path"},
		{unix.EACCES, "unix", "permission denied: let shuntd write to the socket"},
		{unix.EHOSTUNREACH, "tcp", "no route to host: see that the host is up and has a route"},
		{unix.ENETUNREACH, "tcp", "network is unreachable: see that the host is up and has a route"},
		{&net.DNSError{Err: "no such host", Name: "nowhere"}, "tcp", "no such host: correct the host, or see to the name server"},
		{errors.New("anything"), "tcp", "anything"},
	} {
		if err := unreached(test.err, test.network); !strings.Contains(err.Error(), test.want) || !errors.Is(err, test.err) {
			t.Errorf("%v: %v, want %q", test.err, err, test.want)
		}
	}
}
