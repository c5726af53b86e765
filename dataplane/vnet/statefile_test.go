package vnet_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/dataplane/vnet"
	"github.com/shuntio/shunt/tools/need"
)

// A state file is there for the next device if it can tell it anything.
func TestStateFileStays(t *testing.T) {
	for format, features := range formats {
		t.Run(format, func(t *testing.T) {
			file := filepath.Join(stateDir(t), "state")
			for range 2 {
				l := newLife(t, file, features)
				l.finish()
				l.end()
				packed := features&vnet.FeaturePacked != 0
				if _, err := os.Stat(file); packed != (err == nil) || !packed && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("after the device's end: %v", err)
				}
			}
		})
	}
}

// RemoveState takes its owner's files that no device has.
func TestRemoveState(t *testing.T) {
	file := filepath.Join(stateDir(t), "state")
	l := newLife(t, file, vnet.FeaturePacked)
	remove := func(owner string, want bool, when string) {
		t.Helper()
		if removed, err := vnet.RemoveState(file, owner); err != nil || removed != want {
			t.Errorf("%s: removed %v, %v", when, removed, err)
		}
		if _, err := os.Stat(file); want != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", when, err)
		}
	}
	remove("", false, "in use")
	l.end()
	remove("another", false, "of no owner")
	l.owner = "/run/one"
	l.start()
	l.end()
	remove("/run/on", false, "another's")
	remove("/run/one", true, "unused")
	for _, content := range []string{"", "nonsense"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		remove("", false, "no state file")
	}
}

// Where memory for files ran out, a guest with split rings works all the same.
func TestStateFileWithoutRoom(t *testing.T) {
	need.Root(t)
	dir := stateDir(t)
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := newLife(t, filepath.Join(dir, "state"), 0)
	l.finish()
	l.end()
}
