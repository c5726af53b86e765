package guest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// cpioWriter writes the archive format the kernel unpacks as its initial file
// system ("newc": Documentation/driver-api/early-userspace/buffer-format.rst):
// per entry a header of hexadecimal fields, the name, the content, each padded
// to four bytes. The first error sticks and is returned by close.
type cpioWriter struct {
	out    *bufio.Writer
	offset int64
	inode  uint32
	dirs   map[string]bool
	err    error
}

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{out: bufio.NewWriter(w), dirs: map[string]bool{".": true}}
}

func (c *cpioWriter) file(name string, mode uint32, content []byte) {
	c.entry(name, unix.S_IFREG|mode, 0, 0, content)
}

// copy archives the content of a file, through symbolic links, as executable.
func (c *cpioWriter) copy(name, from string) {
	content, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, 0o755, content)
}

func (c *cpioWriter) device(name string, major, minor uint32) {
	c.entry(name, unix.S_IFCHR|0o600, major, minor, nil)
}

// parents writes the directories above name that are not there yet, which the
// kernel does not make itself.
func (c *cpioWriter) parents(name string) {
	dir := path.Dir(name)
	if c.dirs[dir] {
		return
	}
	c.parents(dir)
	c.dirs[dir] = true
	c.entry(dir, unix.S_IFDIR|0o755, 0, 0, nil)
}

func (c *cpioWriter) entry(name string, mode, major, minor uint32, content []byte) {
	c.parents(name)
	c.inode++
	const links, mtime, owner = 1, 0, 0
	fields := []uint32{c.inode, mode, owner, owner, links, mtime, uint32(len(content)), 0, 0, major, minor, uint32(len(name) + 1), 0}
	header := "070701"
	for _, field := range fields {
		header += fmt.Sprintf("%08x", field)
	}
	c.write([]byte(header + name + "\x00"))
	c.write(content)
}

func (c *cpioWriter) write(p []byte) {
	const align = 4
	n := int64(len(p))
	padding := (align - (c.offset+n)%align) % align
	for _, part := range [][]byte{p, make([]byte, padding)} {
		if c.err == nil {
			_, c.err = c.out.Write(part)
		}
	}
	c.offset += n + padding
}

func (c *cpioWriter) close() error {
	c.dirs[path.Dir("TRAILER!!!")] = true
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	if c.err != nil {
		return c.err
	}
	return c.out.Flush()
}
