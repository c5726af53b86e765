package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/lab/guest"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/lab/peer"
	"github.com/shuntio/shunt/tools/need"
)

// rootImage is an image with a root file system on a disk, with fio and what makes and checks file systems.
func rootImage(t *testing.T) guest.Image {
	t.Helper()
	need.Time(t, "boots a guest")
	need.Program(t, "qemu-system-x86_64", "apt-get", "dpkg-deb", "mke2fs", "e2fsck", "debugfs")
	img, err := guest.Build(t.Context(), guest.Recipe{
		Root: &guest.Root{
			Packages: []string{"fio", "e2fsprogs", "util-linux", "coreutils"},
			Programs: []string{"fio", "mke2fs", "e2fsck", "resize2fs", "blkdiscard", "lsblk", "sha256sum"}, MiB: 256,
		},
		Progress: func(s string) { t.Log(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// cloud is a guest whose root lies on an NBD server on another node, and whose second disk is a file on its own:
//
//	guest /dev/vda ─ vhost-user ─ shuntd ─ io_uring, TCP ══ veth ══ NBD server ─ root
//	guest /dev/vdb ─ vhost-user ─ shuntd ─ io_uring ─ data
type cloud struct {
	dir, root, data  string // the directory, and the disks in it
	host, far        *netlab.Namespace
	img              guest.Image
	rootSock, dbSock string
}

const cloudServer, cloudPort = "192.0.2.2", 10809

func newCloud(t *testing.T) *cloud {
	img := rootImage(t)
	c := &cloud{dir: t.TempDir(), host: namespace(t, "host"), far: namespace(t, "far"), img: img}
	wire(t,
		netlab.End{Namespace: c.host, Name: "up0", Addrs: []string{"192.0.2.1/24"}},
		netlab.End{Namespace: c.far, Name: "up0", Addrs: []string{cloudServer + "/24"}})
	c.root, c.data = filepath.Join(c.dir, "root"), filepath.Join(c.dir, "data")
	c.rootSock, c.dbSock = filepath.Join(c.dir, "root.sock"), filepath.Join(c.dir, "data.sock")
	if err := guest.CopyDisk(img.Root, c.root); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(c.data, 64<<20); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cloud) config() string {
	return fmt.Sprintf(`workers: {cpus: [1]}
volumes:
  - {name: root, socket: %s, source: "nbd://%s:%d/", serial: cloud-root}
  - {name: data, socket: %s, source: "file://%s", serial: local-data}
`, c.rootSock, cloudServer, cloudPort, c.dbSock, c.data) + c.pluggedConfig()
}

func (c *cloud) options() guest.Options {
	return guest.Options{Name: "guest", Image: c.img, Root: "/dev/vda", MemoryMiB: 384, Slots: 1,
		Disks: []guest.Disk{{Socket: c.rootSock, Reconnect: true}, {Socket: c.dbSock, Reconnect: true}}}
}

func volumeCtl(t *testing.T, socket string, args ...string) string {
	t.Helper()
	binary, err := buildCtl()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), binary, append([]string{"--socket", socket}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("shuntctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A guest boots its root from a cloud disk, uses it and a second disk as guests do, and both hold afterwards what it wrote, byte by byte.
func TestGuestOnVolumes(t *testing.T) {
	need.Program(t, "nbdkit", "nbdinfo")
	ctx := within(t, 8*time.Minute)
	c := newCloud(t)
	server, err := peer.StartNBD(ctx, c.far, fmt.Sprintf("nbd://%s:%d", cloudServer, cloudPort),
		"nbdkit", "-f", "-p", fmt.Sprint(cloudPort), "file", c.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	p := &plugged{server: c.pluggedServer(t, ctx), socket: c.pluggedSocket("plugged")}
	d := start(t, c.host, "shuntd", c.config())
	g := boot(t, c.options())
	p.g, p.d = g, d

	t.Run("disks", func(t *testing.T) {
		out, err := g.Shell(ctx, "for d in vda vdb; do echo $d $(cat /sys/block/$d/size) $(cat /sys/block/$d/serial) $(cat /sys/block/$d/queue/write_cache); done; lsblk -no MOUNTPOINT /dev/vda")
		if want := "vda 524288 cloud-root write back\nvdb 131072 local-data write back\n/\n"; err != nil || out != want {
			t.Errorf("the guest has\n%swant\n%s%v", out, want, err)
		}
	})
	t.Run("fio", func(t *testing.T) {
		out, err := g.Shell(ctx, `fio --name=v --filename=/dev/vdb --direct=1 --ioengine=psync --rw=randrw --bssplit=4k/60:64k/30:256k/10 --size=24m --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=16 --randseed=7 --output-format=terse && dd if=/dev/vdb bs=1M count=1 2>/dev/null | sha256sum`)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(firstLine(out))
	})
	t.Run("discard", func(t *testing.T) {
		out, err := g.Shell(ctx, `dd if=/dev/urandom of=/dev/vdb bs=1M count=8 oflag=direct 2>/dev/null && sync && blkdiscard -o 1048576 -l 4194304 /dev/vdb && blkdiscard -z -o 6291456 -l 1048576 /dev/vdb && dd if=/dev/vdb iflag=direct bs=1M skip=1 count=4 2>/dev/null | tr -d '\000' | wc -c && dd if=/dev/vdb iflag=direct bs=1M skip=6 count=1 2>/dev/null | tr -d '\000' | wc -c`)
		if err != nil || strings.Join(strings.Fields(out), " ") != "0 0" {
			t.Errorf("what was discarded reads as other than zeros: %q, %v", out, err)
		}
		hole, err := exec.Command("du", "-k", c.data).Output()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("the file takes %s KiB of 65536", strings.Fields(string(hole))[0])
	})
	t.Run("resize", func(t *testing.T) {
		if _, err := g.Shell(ctx, "mke2fs -q -F -t ext4 /dev/vdb && mkdir -p /data && mount -t ext4 /dev/vdb /data && dd if=/dev/urandom of=/data/before bs=64k count=64 2>/dev/null && sync && sha256sum /data/before >/data/sums"); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(c.data, 96<<20); err != nil {
			t.Fatal(err)
		}
		volumeCtl(t, d.Socket(), "volume", "resize", "data")
		out, err := g.Shell(ctx, "i=0; until [ $(cat /sys/block/vdb/size) = 196608 ]; do usleep 100000; i=$((i+1)); [ $i -lt 100 ] || exit 9; done; resize2fs /dev/vdb 2>&1 && dd if=/dev/urandom of=/data/after bs=1M count=60 2>/dev/null && sha256sum /data/after >>/data/sums && sync && df /data")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(firstLine(out))
	})
	t.Run("reboot", func(t *testing.T) {
		if _, err := g.Shell(ctx, "dd if=/dev/urandom of=/kept bs=64k count=200 2>/dev/null; sha256sum /kept >/kept.sum; sync"); err != nil {
			t.Fatal(err)
		}
		p.rebootFrozen(t, ctx, [2]string{c.pluggedSocket("n1"), c.pluggedSocket("n2")})
		if out, err := g.Shell(ctx, "sha256sum -c /kept.sum && mount -t ext4 /dev/vdb /data && sha256sum -c /data/sums"); err != nil {
			t.Errorf("after a reboot: %v\n%s", err, out)
		}
	})
	sums := run(t, g, "cat", "/kept.sum", "/data/sums")
	if _, err := g.Shell(ctx, "umount /data && mount -o remount,ro / && sync"); err != nil {
		t.Error(err)
	}
	t.Log(volumeCtl(t, d.Socket(), "stats"))
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
	server.Kill()
	for _, disk := range []string{c.root, c.data} {
		if out, err := exec.CommandContext(ctx, "e2fsck", "-fn", disk).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", disk, err, out)
		}
	}
	for line := range strings.Lines(sums) {
		sum, path, _ := strings.Cut(strings.TrimSpace(line), "  ")
		disk, inside := c.root, path
		if rest, ok := strings.CutPrefix(path, "/data"); ok {
			disk, inside = c.data, rest
		}
		out := filepath.Join(c.dir, "dumped")
		if said, err := exec.CommandContext(ctx, "debugfs", "-R", "dump "+inside+" "+out, disk).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		have, err := exec.CommandContext(ctx, "sha256sum", out).Output()
		if err != nil || !strings.HasPrefix(string(have), sum) {
			t.Errorf("%s on %s is %s, the guest wrote %s (%v)", inside, disk, have, sum, err)
		}
	}
	t.Run("from a file", func(t *testing.T) { c.bootsFromFile(t, ctx) })
}

// bootsFromFile boots the same root once more, from the file that the server had.
func (c *cloud) bootsFromFile(t *testing.T, ctx context.Context) {
	d := start(t, c.host, "shuntd", strings.Replace(c.config(), fmt.Sprintf("nbd://%s:%d/", cloudServer, cloudPort), "file://"+c.root, 1))
	g := boot(t, c.options())
	if out, err := g.Shell(ctx, "sha256sum -c /kept.sum && dd if=/dev/urandom of=/kept bs=64k count=100 2>/dev/null && sync && echo 3 >/proc/sys/vm/drop_caches && sha256sum /kept && mount -o remount,ro /"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
	if out, err := exec.CommandContext(ctx, "e2fsck", "-fn", c.root).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
