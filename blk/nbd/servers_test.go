package nbd

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/blktest"
)

// imageSize is that of the disks of the tests.
const imageSize = 16 << 20

// TestServers puts every server through the same: what was written is read, by requests of many lengths, many at once.
func TestServers(t *testing.T) {
	t.Parallel()
	for _, server := range []struct {
		name  string
		start func(t *testing.T) Options
	}{
		{"nbdkit memory", func(t *testing.T) Options { _, o := nbdkit(t, "memory", "16M"); return o }},
		{"nbdkit file", func(t *testing.T) Options { _, o := nbdkit(t, "file", image(t)); return o }},
		{"nbdkit without structured replies", func(t *testing.T) Options { _, o := nbdkit(t, "--no-sr", "memory", "16M"); return o }},
		{"nbdkit with blocks of 4096", func(t *testing.T) Options {
			_, o := nbdkit(t, "--filter=blocksize-policy", "memory", "16M", "blocksize-minimum=4096", "blocksize-preferred=4096",
				"blocksize-maximum=65536", "blocksize-error-policy=error")
			return o
		}},
		{"nbdkit without multi-conn", func(t *testing.T) Options {
			_, o := nbdkit(t, "--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable")
			return o
		}},
		{"nbdkit that is slow", func(t *testing.T) Options {
			_, o := nbdkit(t, "--filter=delay", "memory", "16M", "rdelay=2ms", "wdelay=1ms")
			return o
		}},
		{"qemu-nbd", func(t *testing.T) Options { return qemuNBD(t, image(t)) }},
		{"nbd-server", func(t *testing.T) Options { return nbdServer(t, image(t), "") }},
	} {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			o := server.start(t)
			s := open(t, o)
			t.Log(s.Info().Describe)
			suite(t, newBench(t).use(s))
		})
	}
}

// suite is what every server has to pass.
func suite(t *testing.T, u *user) {
	info := u.store.Info()
	if info.Size != imageSize {
		t.Fatalf("the export has %d bytes, not %d", info.Size, imageSize)
	}
	r := rand.New(rand.NewPCG(1, 2))
	disk := make([]byte, imageSize)
	block := int(info.BlockSize)
	half := len(u.memory) / 2
	for round := range 30 {
		var writes []*asked
		used := 0
		for at := r.IntN(20) * block; len(writes) < 40; { // disjoint, in any order
			n := block * (1 + r.IntN(16))
			if r.IntN(8) == 0 {
				n = block * (1 + r.IntN((512<<10)/block))
			}
			if at+n > imageSize || used+n > half {
				break
			}
			b := u.memory[used:][:n]
			fill(r, b[:min(n, 64)])
			b[n-1] = byte(round)
			copy(disk[at:], b)
			writes = append(writes, ask(blk.OpWrite, uint64(at), blktest.Scatter(r, b)...))
			used += n
			at += n + block*r.IntN(64)
		}
		r.Shuffle(len(writes), func(i, j int) { writes[i], writes[j] = writes[j], writes[i] })
		if info.FUA {
			writes[0].FUA = true
		}
		u.run(blk.OK, writes...)
		if info.Flush && round%4 == 0 {
			u.run(blk.OK, ask(blk.OpFlush, 0))
		}
		if info.WriteZeroes && round%3 == 0 {
			at, n := block*r.IntN(imageSize/block-64), block*64
			z := ask(blk.OpWriteZeroes, uint64(at))
			z.Length, z.Unmap = uint64(n), round%2 == 0
			u.run(blk.OK, z)
			clear(disk[at:][:n])
		}
		var reads []*asked
		used = 0
		for len(reads) < 40 {
			n := block * (1 + r.IntN(16))
			if r.IntN(8) == 0 {
				n = block * (1 + r.IntN((512<<10)/block))
			}
			if used+n > half {
				break
			}
			at := block * r.IntN((imageSize-n)/block)
			b := u.memory[half+used:][:n]
			fill(r, b[:min(n, 64)])
			reads = append(reads, ask(blk.OpRead, uint64(at), blktest.Scatter(r, b)...))
			used += n
		}
		u.run(blk.OK, reads...)
		used = 0
		for _, a := range reads {
			same(t, "a read", u.memory[half+used:][:a.Length], disk[a.Offset:][:a.Length])
			used += int(a.Length)
		}
	}
	if info.Discard {
		d := ask(blk.OpDiscard, 1<<20)
		d.Length = 4 << 20
		u.run(blk.OK, d)
	}
	if info.WriteZeroes {
		z := ask(blk.OpWriteZeroes, 0)
		z.Length, z.Unmap = imageSize, true
		u.run(blk.OK, z)
		a := ask(blk.OpRead, 0, u.memory)
		u.run(blk.OK, a)
		same(t, "zeroes", u.memory, make([]byte, len(u.memory)))
	}
}

// image is a file of zeroes.
func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, imageSize); err != nil {
		t.Fatal(err)
	}
	return path
}

func qemuNBD(t *testing.T, path string, args ...string) Options {
	t.Helper()
	socket := socketPath(t, "q")
	o := Options{URI: "nbd+unix:///?socket=" + socket}
	p := start(t, "qemu-nbd", append([]string{"-t", "-f", "raw", "-k", socket, "-e", "4", "--discard=unmap"}, append(args, path)...)...)
	reachable(t, p, o)
	return o
}

func nbdServer(t *testing.T, path, extra string) Options {
	t.Helper()
	port := freePort(t)
	config := filepath.Join(t.TempDir(), "config")
	text := "[generic]\n\tport = " + port + "\n\tlistenaddr = 127.0.0.1\n\tallowlist = true\n[disk]\n\texportname = " + path +
		"\n\tflush = true\n\tfua = true\n\ttrim = true\n" + extra
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{URI: "nbd://127.0.0.1:" + port + "/disk"}
	p := start(t, "nbd-server", "-d", "-C", config)
	reachable(t, p, o)
	return o
}
