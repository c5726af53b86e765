package uring

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Modes are what this kernel gives a ring. Each can be masked by its name in SHUNT_MASK, so that what happens without it can be tested.
type Modes struct {
	// SingleIssuer (uring-single-issuer, 6.0): the kernel counts on there being one thread.
	SingleIssuer bool
	// DeferTaskrun (uring-defer-taskrun, 6.1, and SingleIssuer): completions are posted only when we enter. Without it they are posted
	// whenever our thread leaves the kernel, which it may be interrupted for.
	DeferTaskrun bool
	// NoSQArray (uring-no-sqarray, 6.6): the SQ has no indirection.
	NoSQArray bool
	// FixedVectors (uring-fixed-vectors, 6.15): registered memory also for vectors of more than one buffer.
	FixedVectors bool
}

// String lists those in force, as they are masked.
func (m Modes) String() string {
	var names []string
	for _, f := range []struct {
		in   bool
		name string
	}{
		{m.SingleIssuer, "single-issuer"}, {m.DeferTaskrun, "defer-taskrun"},
		{m.NoSQArray, "no-sqarray"}, {m.FixedVectors, "fixed-vectors"},
	} {
		if f.in {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, " ")
}

// masked tells whether SHUNT_MASK hides an optional feature: a list of names, separated by commas; "all" hides every one.
func masked(name string) bool {
	for m := range strings.SplitSeq(os.Getenv("SHUNT_MASK"), ",") {
		if m = strings.TrimSpace(m); m == "all" || m == name {
			return true
		}
	}
	return false
}

// wanted are the modes that are not masked.
func wanted() Modes {
	m := Modes{
		SingleIssuer: !masked("uring-single-issuer"),
		DeferTaskrun: !masked("uring-defer-taskrun"),
		NoSQArray:    !masked("uring-no-sqarray"),
		FixedVectors: !masked("uring-fixed-vectors"),
	}
	m.DeferTaskrun = m.DeferTaskrun && m.SingleIssuer
	return m
}

// flags are those of io_uring_setup for a mode. The ring begins disabled, so that the thread that enables it is its one issuer.
func (m Modes) flags() uint32 {
	flags := uint32(setupDisabled | setupSubmitAll | setupCQSize)
	if m.SingleIssuer {
		flags |= setupSingleIssuer
	}
	if m.DeferTaskrun {
		flags |= setupDeferTaskrun | setupTaskrunFlag
	} else {
		flags |= setupCoopTaskrun | setupTaskrunFlag
	}
	if m.NoSQArray {
		flags |= setupNoSQArray
	}
	return flags
}

// create makes a ring of the most modes that the kernel takes, newest dropped first.
func create(entries uint32, m *Modes) (int, params, error) {
	for {
		p := params{flags: m.flags(), cqEntries: 2 * entries}
		fd, err := setup(entries, &p)
		if err == nil {
			return fd, p, nil
		}
		switch {
		case !errors.Is(err, unix.EINVAL):
			return -1, p, explain(err)
		case m.NoSQArray:
			m.NoSQArray = false
		case m.DeferTaskrun:
			m.DeferTaskrun = false
		case m.SingleIssuer:
			m.SingleIssuer = false
		default:
			return -1, p, fmt.Errorf("io_uring_setup of %d entries: %w: this needs kernel 6.1 or newer", entries, err)
		}
	}
}

// explain says what to do about an io_uring_setup that failed.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("io_uring_setup: %w: this kernel was built without io_uring (CONFIG_IO_URING)", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("io_uring_setup: %w: allow io_uring: sysctl kernel.io_uring_disabled=0, and the io_uring_* calls in this program's system call filter", err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("io_uring_setup: %w: raise the limit of locked memory (LimitMEMLOCK)", err)
	}
	return fmt.Errorf("io_uring_setup: %w", err)
}
