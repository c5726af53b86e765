// Shuntbpf loads, attaches and looks at XDP programs: shunt's own, which is built
// in, and those of any object file.
//
//	load     a program into the kernel, to have it verified
//	attach   it to an interface, where it stays until
//	detach   takes it off
//	status   which interface runs what, with maps and counters
//	pin      what an interface runs, so that it outlives its attachment
//
// It exits with 1 when something failed and with 2 when it was asked for
// something that does not make sense.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/shuntio/shunt/bpf"
)

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "shuntbpf: %v\n", err)
		os.Exit(exitStatus(err))
	}
}

// usageError is a fault of who called us.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func badUsage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitStatus(err error) int {
	var usage usageError
	if errors.As(err, &usage) || errors.Is(err, bpf.ErrInvalid) || errors.Is(err, bpf.ErrNoInterface) {
		return 2
	}
	return 1
}
