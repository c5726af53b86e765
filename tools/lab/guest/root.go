package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// writeRoot makes an ext4 file system that a guest can have as its root: the same programs and init as the initial file system, without modules, and what
// Recipe.Root names.
func (r Recipe) writeRoot(ctx context.Context, packages, stage, path string) error {
	programs, err := findPrograms(packages, slices.Concat(r.Programs, r.Root.Programs))
	if err != nil {
		return err
	}
	files := map[string]string{"bin/busybox": filepath.Join(packages, "bin", "busybox")}
	maps.Copy(files, programs)
	for name, from := range files {
		if err := place(from, filepath.Join(stage, name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(stage, "init"), initScript, 0o755); err != nil {
		return err
	}
	// A size that is always the same makes images that are.
	mke2fs := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "shunt-root", "-E", "root_owner=0:0", "-d", stage, path, fmt.Sprintf("%dM", r.Root.MiB))
	mke2fs.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := mke2fs.CombinedOutput(); err != nil {
		return fmt.Errorf("make the root disk (mke2fs, of package e2fsprogs): %w: %s", err, strings.TrimSpace(string(out)))
	}
	return os.RemoveAll(stage)
}

// place copies a program or library, through symbolic links.
func place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// CopyDisk copies a disk, holes as holes, for a guest to write to.
func CopyDisk(from, to string) error {
	if err := copyDisk(from, to); err != nil {
		return fmt.Errorf("copy disk %s to %s: %w", from, to, err)
	}
	return nil
}

func copyDisk(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for at := int64(0); ; {
		data, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			return out.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
		if at, err = in.Seek(data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, at-data)); err != nil {
			return err
		}
	}
}
