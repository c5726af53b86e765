package peer

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const hugePagesFile = "/proc/sys/vm/nr_hugepages"

// ReserveHugePages sets n more huge pages aside, until release is called.
// Fewer, where memory is too fragmented, is an error.
func ReserveHugePages(n int) (release func() error, err error) {
	before, err := hugePages()
	if err != nil {
		return nil, err
	}
	release = func() error { return setHugePages(before) }
	if err := setHugePages(before + n); err != nil {
		return nil, err
	}
	if now, err := hugePages(); err != nil || now < before+n {
		_ = release()
		return nil, fmt.Errorf("reserve %d huge pages: the kernel gave %d (%v)", n, now-before, err)
	}
	return release, nil
}

func hugePages() (int, error) {
	b, err := os.ReadFile(hugePagesFile)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func setHugePages(n int) error {
	return os.WriteFile(hugePagesFile, []byte(strconv.Itoa(n)), 0)
}
