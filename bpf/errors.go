package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy is wrapped by errors for an interface that somebody else holds: a
	// living process, or an XDP program that is not ours to replace.
	ErrBusy = errors.New("interface is taken")
	// ErrNoInterface is wrapped when the interface does not exist.
	ErrNoInterface = errors.New("no such interface")
	// ErrPermission is wrapped when the process may not load or attach programs.
	ErrPermission = errors.New("permission denied")
	// ErrNotSupported is wrapped when kernel or driver cannot do what was asked.
	ErrNotSupported = errors.New("not supported")
	// ErrInvalid is wrapped when a value given to us cannot be right.
	ErrInvalid = errors.New("invalid value")
	// ErrNotAttached is wrapped when there is nothing to detach.
	ErrNotAttached = errors.New("no XDP program attached")
)

// told is an error in one sentence, which says what to do. What it wraps is for errors.Is alone: the names of library
// functions and the second half of a chain tell an operator nothing.
type told struct {
	sentence string
	causes   []error
}

func (t *told) Error() string   { return t.sentence }
func (t *told) Unwrap() []error { return t.causes }

// tell makes an error of a sentence and what it wraps.
func tell(causes []error, format string, args ...any) error {
	return &told{fmt.Sprintf(format, args...), causes}
}

// Explain turns the kernel's refusal of a BPF system call or a pin into a
// sentence that says what to do. It returns nil for nil.
func Explain(doing string, err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &verifier) && len(verifier.Log) > 0:
		// EACCES is also how the verifier says no, so this comes first.
		return fmt.Errorf("%s: %w: kernel %s refuses the program, shunt needs 6.1 or newer: %w", doing, ErrNotSupported, kernel(), err)
	case errors.Is(err, os.ErrPermission):
		return tell([]error{ErrPermission, err}, "%s: permission denied: run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN", doing)
	case errors.Is(err, unix.EROFS):
		return tell([]error{err}, "%s: the BPF file system is read-only: remount it with `mount -o remount,rw %s`", doing, bpffs)
	case errors.Is(err, ebpf.ErrNotSupported):
		return tell([]error{ErrNotSupported, err}, "%s: kernel %s does not support it (%v): shunt needs 6.1 or newer", doing, kernel(), reason(err))
	}
	return tell([]error{err}, "%s: %v", doing, reason(err))
}

// reason is what the kernel said, if it said something.
func reason(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func kernel() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return "(unknown)"
	}
	return strings.TrimSpace(unix.ByteSliceToString(uts.Release[:]))
}

func notAttached(dev device) error { return fmt.Errorf("%w to %s", ErrNotAttached, dev.name) }
