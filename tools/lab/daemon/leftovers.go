package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/shuntio/shunt/tools/lab/netlab"
)

// Leftovers lists what a daemon that ended should have taken with it: XDP
// programs and pins of its namespace, its control socket, and the files named.
func (d *Daemon) Leftovers(files ...string) ([]string, error) {
	left, err := attached(d.o.Namespace)
	if err != nil {
		return nil, err
	}
	if ns := d.o.Namespace; ns != nil {
		pins, err := pinned(ns.BPF())
		if err != nil {
			return nil, err
		}
		left = append(left, pins...)
	}
	for _, file := range append(files, d.Socket()) {
		if _, err := os.Lstat(file); err == nil {
			left = append(left, "file "+file)
		}
	}
	return left, nil
}

func attached(ns *netlab.Namespace) ([]string, error) {
	var left []string
	err := ns.Do(func() error {
		links, err := netlink.LinkList()
		for errors.Is(err, netlink.ErrDumpInterrupted) { // something came or went meanwhile
			links, err = netlink.LinkList()
		}
		if err != nil {
			return err
		}
		for _, link := range links {
			if xdp := link.Attrs().Xdp; xdp != nil && xdp.Attached {
				left = append(left, fmt.Sprintf("XDP program %d on %s", xdp.ProgId, link.Attrs().Name))
			}
		}
		return nil
	})
	return left, err
}

// pinned lists a BPF file system but for what the kernel itself puts there.
func pinned(dir string) ([]string, error) {
	var left []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != dir && !strings.HasSuffix(path, ".debug") {
			left = append(left, "pin "+strings.TrimPrefix(path, dir))
		}
		return err
	})
	return left, err
}

// SweepRings removes what daemons remember of the rings behind sockets below a directory, where the socket's own directory is gone: others may be
// testing at the same time. On a real host those files wait for the next daemon.
func SweepRings(dir string) {
	for _, rings := range []string{"/run/shunt/rings", "/dev/shm/shunt/rings"} {
		files, _ := os.ReadDir(rings)
		for _, f := range files {
			socket, err := url.PathUnescape(f.Name())
			if err != nil || !strings.HasPrefix(socket, dir+"/") {
				continue
			}
			if _, err := os.Stat(filepath.Dir(socket)); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(filepath.Join(rings, f.Name()))
			}
		}
		_ = os.Remove(rings) // if it is empty
		_ = os.Remove(filepath.Dir(rings))
	}
}
