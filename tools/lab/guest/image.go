package guest

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed init.sh
var initScript []byte

// Recipe says what a guest image holds beyond the base: the stock kernel,
// busybox, ip, bridge, ethtool, iperf3, and the modules of virtio over PCI,
// virtio-net, VXLAN and VLANs. The zero value is the base alone.
type Recipe struct {
	// Packages of Debian to take programs and their libraries from.
	Packages []string
	// Programs by name, out of any of the packages.
	Programs []string
	// Modules by name; what they depend on is found and comes along.
	Modules []string
	// Root, if set, has a disk built besides, with a root file system on it.
	Root *Root `json:",omitempty"`
	// Progress, if set, is told what a build is doing, one line a step.
	Progress func(string) `json:"-"`
}

// Root is what a root file system on a disk holds beyond the base's programs.
type Root struct {
	// Packages and Programs are as in Recipe; the initial file system has none of these.
	Packages, Programs []string
	// MiB is the size of the file system and of the disk.
	MiB int
}

// rootModules are what the initial file system needs to find a root on a disk.
var rootModules = []string{"virtio_blk", "ext4", "crc32c_generic"}

var base = Recipe{
	Packages: []string{kernelPackage, "busybox-static", "iproute2", "ethtool", "iperf3"},
	Programs: []string{"ip", "bridge", "ethtool", "iperf3"},
	Modules:  []string{"virtio_pci", "virtio_console", "virtio_net", "vxlan", "8021q"},
}

// builder changes when the code below makes another image of the same recipe.
const builder = "3"

// Image is a kernel and its initial file system, ready to boot.
type Image struct {
	Kernel, Initramfs string // paths
	// Root is the path of the disk that Recipe.Root asked for: an ext4 file system, without partitions. It is to be copied, not written.
	Root string
	// Packages it was built from, as name=version.
	Packages []string
}

// manifest is written last into an image's directory before the directory
// gets its name, and holds what Build checks before it trusts one.
type manifest struct {
	Recipe   string
	Packages []string
	Sizes    map[string]int64
}

const (
	kernelFile    = "kernel"
	initramfsFile = "initramfs.cpio"
	rootFile      = "root.ext4"
	manifestFile  = "manifest.json"
)

// Build returns the image of a recipe, made from the packages that apt offers
// now. It is made once and kept in the cache, whose directory is
// $XDG_CACHE_HOME/shunt/lab where that is set, else .cache/lab at the root of
// the module. Builders in other processes wait for each other. Without apt's
// lists, an image in the cache of the same recipe is taken as it is.
func Build(ctx context.Context, recipe Recipe) (Image, error) {
	image, err := build(ctx, recipe)
	if err != nil {
		return Image{}, fmt.Errorf("build guest image: %w", err)
	}
	return image, nil
}

func build(ctx context.Context, recipe Recipe) (Image, error) {
	recipe = recipe.withBase()
	cache, err := CacheDir()
	if err != nil {
		return Image{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Image{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()

	packages, err := resolveOnce(ctx, cache, recipe.packages())
	if err != nil {
		if image, ok := newestOf(cache, recipe.hash()); ok {
			return image, nil
		}
		return Image{}, err
	}
	dir := filepath.Join(cache, fmt.Sprintf("image-%s-%s", recipe.hash(), digest(strings.Join(packages, "\n"))))
	if image, ok := trusted(dir); ok {
		return image, nil
	}
	if err := recipe.makeIn(ctx, cache, dir, packages); err != nil {
		return Image{}, err
	}
	image, ok := trusted(dir)
	if !ok {
		return Image{}, fmt.Errorf("the image just written to %s does not read back; check the disk", dir)
	}
	return image, nil
}

func (r Recipe) withBase() Recipe {
	join := func(a, b []string) []string {
		all := slices.Concat(a, b)
		slices.Sort(all)
		return slices.Compact(all)
	}
	full := Recipe{join(base.Packages, r.Packages), join(base.Programs, r.Programs), join(base.Modules, r.Modules), r.Root, r.Progress}
	if r.Root != nil {
		full.Modules = join(full.Modules, rootModules)
	}
	return full
}

// packages of the initial file system and of the disk.
func (r Recipe) packages() []string {
	if r.Root == nil {
		return r.Packages
	}
	all := slices.Concat(r.Packages, r.Root.Packages)
	slices.Sort(all)
	return slices.Compact(all)
}

func (r Recipe) hash() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // lists of strings
	}
	return digest(builder + string(text) + string(initScript))
}

func (r Recipe) progress(format string, args ...any) {
	if r.Progress != nil {
		r.Progress(fmt.Sprintf(format, args...))
	}
}

func digest(s string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:12]
}

// makeIn works in a directory beside dir and gives it its name at the end, so
// that dir is whole or not there.
func (r Recipe) makeIn(ctx context.Context, cache, dir string, packages []string) error {
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root, out := filepath.Join(work, "root"), filepath.Join(work, "out")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(out, 0o755)); err != nil {
		return err
	}
	r.progress("downloading %d packages", len(packages))
	if err := download(ctx, work, packages); err != nil {
		return err
	}
	r.progress("unpacking")
	if err := unpack(ctx, work, root); err != nil {
		return err
	}
	r.progress("packing the guest's file system")
	version, err := kernelVersion(root)
	if err != nil {
		return err
	}
	if err := copyKernel(ctx, filepath.Join(root, "boot", "vmlinuz-"+version), filepath.Join(out, kernelFile)); err != nil {
		return err
	}
	if err := r.writeInitramfs(root, version, filepath.Join(out, initramfsFile)); err != nil {
		return err
	}
	if r.Root != nil {
		r.progress("making the root disk of %d MiB", r.Root.MiB)
		if err := r.writeRoot(ctx, root, filepath.Join(work, "disk"), filepath.Join(out, rootFile)); err != nil {
			return err
		}
	}
	if err := writeManifest(out, manifest{Recipe: r.hash(), Packages: packages}); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // one that was not trusted
		return err
	}
	return os.Rename(out, dir)
}

func (r Recipe) writeInitramfs(root, version, path string) error {
	modules, err := findModules(filepath.Join(root, "lib", "modules", version), r.Modules)
	if err != nil {
		return err
	}
	programs, err := findPrograms(root, r.Programs)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := newCPIO(file)
	archive.device("dev/console", 5, 1)
	archive.file("init", 0o755, initScript)
	archive.copy("bin/busybox", filepath.Join(root, "bin", "busybox"))
	for path, from := range programs {
		archive.copy(path, from)
	}
	var order strings.Builder
	for _, module := range modules {
		name := filepath.Base(module)
		fmt.Fprintln(&order, name)
		archive.copy("modules/"+name, module)
	}
	archive.file("modules/order", 0o644, []byte(order.String()))
	if err := archive.close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return errors.Join(file.Sync(), file.Close())
}

func writeManifest(dir string, m manifest) error {
	m.Sizes = map[string]int64{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		m.Sizes[entry.Name()] = info.Size()
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), text, 0o644)
}

// trusted reads an image back, or says that it is not whole.
func trusted(dir string) (Image, bool) {
	m, err := readManifest(dir)
	if err != nil || m.Sizes[kernelFile] == 0 || m.Sizes[initramfsFile] == 0 {
		return Image{}, false
	}
	for name, size := range m.Sizes {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() != size {
			return Image{}, false
		}
	}
	image := Image{Kernel: filepath.Join(dir, kernelFile), Initramfs: filepath.Join(dir, initramfsFile), Packages: m.Packages}
	if m.Sizes[rootFile] > 0 {
		image.Root = filepath.Join(dir, rootFile)
	}
	return image, true
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	text, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	return m, err
}

// newestOf finds the image of a recipe that was built last.
func newestOf(cache, recipe string) (Image, bool) {
	dirs, err := filepath.Glob(filepath.Join(cache, "image-"+recipe+"-*"))
	if err != nil {
		return Image{}, false
	}
	slices.SortFunc(dirs, func(a, b string) int {
		return modified(b).Compare(modified(a))
	})
	for _, dir := range dirs {
		if image, ok := trusted(dir); ok {
			return image, true
		}
	}
	return Image{}, false
}

// CacheDir is where images are kept, see [Build].
func CacheDir() (string, error) {
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "shunt", "lab"), nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".cache", "lab"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find a directory for guest images: run inside the repository, or set XDG_CACHE_HOME")
		}
		dir = parent
	}
}

// lock holds a file lock that the kernel gives up when the process ends.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(file); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { file.Close() }, nil
}

func flock(file *os.File) error {
	for {
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

// kernelVersion is the name of the only directory of modules.
func kernelVersion(root string) (string, error) {
	entries, err := fs.Glob(os.DirFS(root), "lib/modules/*")
	if err != nil || len(entries) != 1 {
		return "", fmt.Errorf("find the modules of one kernel in the packages: found %v, %w", entries, err)
	}
	return filepath.Base(entries[0]), nil
}
