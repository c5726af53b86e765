package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	hugePagesCount = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	// hugePagesDir has a file for each process that holds some, named by its pid
	// and holding their number, so that those of a dead one are found.
	hugePagesDir = "/run/shunt-lab-hugepages"
)

// ReserveHugePages adds huge pages of 2 MiB to the machine's until release is
// called. What processes that died had added is taken back first. It needs
// root, and memory that is not too fragmented.
func ReserveHugePages(count int) (release func() error, err error) {
	if err := changeHugePages(count); err != nil {
		return nil, fmt.Errorf("reserve %d huge pages: %w", count, err)
	}
	return func() error {
		if err := changeHugePages(-count); err != nil {
			return fmt.Errorf("release %d huge pages: %w", count, err)
		}
		return nil
	}, nil
}

// changeHugePages is the only place that writes the count, under a lock that
// other processes take too.
func changeHugePages(by int) error {
	if err := os.MkdirAll(hugePagesDir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(hugePagesDir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	dead, err := forgetTheDead()
	if err != nil {
		return err
	}
	claim := filepath.Join(hugePagesDir, strconv.Itoa(os.Getpid()))
	held, err := readInt(claim)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	total, err := readInt(hugePagesCount)
	if err != nil {
		return err
	}
	// The claim first: if this process dies in between, too many are given back
	// rather than kept, and never more than there are.
	if err := os.WriteFile(claim, []byte(strconv.Itoa(held+by)), 0o644); err != nil {
		return err
	}
	want := max(0, total-dead+by)
	err = os.WriteFile(hugePagesCount, []byte(strconv.Itoa(want)), 0)
	if got, readErr := readInt(hugePagesCount); err == nil && by > 0 && got < want {
		err = errors.Join(readErr, fmt.Errorf("the kernel found only %d of them; free memory or reserve them at boot", got-(want-by)))
		_ = os.WriteFile(hugePagesCount, []byte(strconv.Itoa(want-by)), 0)
	}
	if err != nil {
		by = 0
	}
	if held+by == 0 {
		return errors.Join(err, os.Remove(claim))
	}
	return errors.Join(err, os.WriteFile(claim, []byte(strconv.Itoa(held+by)), 0o644))
}

// forgetTheDead removes the claims of processes that ended and adds them up.
func forgetTheDead() (pages int, err error) {
	entries, err := os.ReadDir(hugePagesDir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		path := filepath.Join(hugePagesDir, e.Name())
		if n, err := readInt(path); err == nil {
			pages += n
		}
		if err := os.Remove(path); err != nil {
			return 0, err
		}
	}
	return pages, nil
}

func readInt(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
