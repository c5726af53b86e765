package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// A guest has its root on a disk behind QEMU's own vhost-user-blk back-end: what the lab's tests of ours stand on.
func TestRootOnDisk(t *testing.T) {
	need.Time(t, "boots a guest")
	for _, program := range []string{"qemu-system-x86_64", "qemu-storage-daemon", "apt-get", "dpkg-deb", "mke2fs", "e2fsck"} {
		need.Program(t, program)
	}
	img, err := Build(t.Context(), Recipe{Root: &Root{Packages: []string{"util-linux"}, Programs: []string{"lsblk"}, MiB: 64}, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "disk.sock")
	if err := CopyDisk(img.Root, disk); err != nil {
		t.Fatal(err)
	}
	// Ended by hand: t.Context is over before what is cleaned up.
	server, err := netlab.Start((*netlab.Namespace)(nil).Command(context.Background(), "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=disk,filename="+disk,
		"--export", "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path="+socket+",writable=on"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-server.Exited():
			t.Fatal(server.Output())
		case <-time.After(10 * time.Millisecond):
		}
	}
	g, err := Start(t.Context(), Options{Name: "rooted", Image: img, Disks: []Disk{{Socket: socket}}, Root: "/dev/vda"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	out, err := g.Shell(t.Context(), "lsblk -no MOUNTPOINT /dev/vda; test ! -e /modules && echo kept > /kept && mount -o remount,ro /")
	if err != nil || strings.TrimSpace(out) != "/" {
		t.Errorf("%q, %v", out, err)
	}
	if err := g.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := g.Shell(t.Context(), "cat /kept && mount -o remount,ro /"); err != nil || out != "kept\n" {
		t.Errorf("after a reset: %q, %v", out, err)
	}
	g.Close()
	server.Kill()
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("the file system: %v\n%s", err, out)
	}
}
