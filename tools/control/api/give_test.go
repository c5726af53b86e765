package api

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who may write to the control socket's directory cannot have the daemon give away another file, by whatever it puts in the socket's place.
func TestGiveIsNotLedAstray(t *testing.T) {
	for name, replace := range map[string]func(precious, path string) error{
		"symbolic link": os.Symlink,
		"hard link":     os.Link,
		"nothing":       func(string, string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			precious, path := filepath.Join(dir, "precious"), filepath.Join(dir, "s")
			other, err := net.Listen("unix", precious)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if err := os.Chmod(precious, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Listen(path, "")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := replace(precious, path); err != nil {
				t.Fatal(err)
			}
			if err := l.give(os.Getegid()); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("the socket that is not there any more is given away: %v", err)
			}
			if info, err := os.Stat(precious); err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("somebody's file is %v now (%v)", info.Mode(), err)
			}
		})
	}
}

// The file at the path when the daemon ends is removed only if it is the one that was made.
func TestGiveKnowsItsFile(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "s"), "")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(l.path, &st); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Lstat(l.path); err != nil || !os.SameFile(now, l.file) {
		t.Errorf("%v is not %v (%v)", l.file, now, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
