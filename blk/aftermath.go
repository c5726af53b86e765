package blk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/shuntio/shunt/dataplane"
)

// What a dead process leaves at a store is its successor's legacy, as far as the guest's front-end keeps it (legacy.go). What a volume leaves there that is closed, and opened again for
// whatever guest and under whatever name, is known here, with an in-flight area or without; the next process knows it by a file for each disk (VolumeOptions.Unended):
//
//	Gate.Done      a write comes back and nobody knows its end           ─▶ doubt, until a request that the lane was given later ends well (Lane.Withdraw)
//	Volume.Close   in doubt, or before what it waited for itself is over ─▶ unended, and a file
//	StartVring     of a front-end that keeps no in-flight area           ─▶ a file: if the process is killed nothing else tells of its writes. Gone when the volume is closed without doubt
//	OpenVolume     of a disk that is there                               ─▶ no write goes to the store within Info.Quiesce
//
// That time begins when the store is opened, and not when the write came back: a server that had stopped has been heard of since, so it has run, and what it was given before it
// carries out soon or not at all. A write that hangs in the kernel keeps its volume open (ErrBusy) and the file locked.
var unended = disks{names: map[string]bool{}}

// disks are those of this process that were closed with writes that may not have ended, until one was closed that had waited for them.
type disks struct {
	mu    sync.Mutex
	names map[string]bool
}

// has tells whether a disk is there, by any of its names.
func (d *disks) has(names []string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(names, func(name string) bool { return d.names[name] })
}

// set has a disk be there by all of its names, or by none.
func (d *disks) set(names []string, there bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		if delete(d.names, name); there {
			d.names[name] = true
		}
	}
}

// names are those by which the volume's disk is known.
func (v *Volume) names() (names []string) {
	if v.options.Source != "" {
		names = append(names, "source "+v.options.Source)
	}
	if i := v.info.Load(); i != nil && i.Identity != "" {
		names = append(names, "disk "+i.Identity)
	}
	return names
}

// files are where a process tells the next one of the disk, one for each of its names.
func (v *Volume) files() (paths []string) {
	if v.options.Unended == "" {
		return nil
	}
	for _, name := range v.names() {
		paths = append(paths, filepath.Join(v.options.Unended, fmt.Sprintf("%x", sha256.Sum256([]byte(name)))))
	}
	return paths
}

// told tells whether a process before this one has left a file. One that cannot be looked for may be there.
func (v *Volume) told() bool {
	return slices.ContainsFunc(v.files(), func(path string) bool {
		_, err := os.Lstat(path)
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// tell has the next process know that the disk's writes may not have ended, or that they have.
func (v *Volume) tell(unended bool) (err error) {
	names, files := v.names(), v.files()
	if unended && len(files) > 0 {
		err = os.MkdirAll(v.options.Unended, 0o700)
	}
	for i, path := range files {
		if unended {
			err = errors.Join(err, os.WriteFile(path, []byte(names[i]+"\n"), 0o600))
		} else if gone := os.Remove(path); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	if err != nil {
		return fmt.Errorf("the next process cannot be told whether writes to the disk may still be carried out: %w", err)
	}
	return nil
}

// unkept is for a guest whose front-end keeps nothing that would tell the next process of writes under way.
func (v *Volume) unkept() {
	if i := v.info.Load(); i.Quiesce <= 0 || i.ReadOnly || v.marked.Swap(true) {
		return
	}
	if err := v.tell(true); err != nil {
		v.note(noteUntold, 0, err, 0)
	}
}

// enter is for a volume whose store was just opened.
func (v *Volume) enter() {
	if quiesce := v.info.Load().Quiesce; quiesce > 0 && (unended.has(v.names()) || v.told()) {
		v.fenced.Store(dataplane.Clock() + int64(quiesce))
		v.note(noteUnended, 0, nil, uint64(quiesce))
	}
}

// leave is for one that is closed, with all its devices.
func (v *Volume) leave() error {
	if i := v.info.Load(); i == nil || i.Quiesce <= 0 {
		return nil
	}
	fenced := v.fenced.Load()
	doubt := v.doubt.Load() != 0 || fenced > dataplane.Clock()
	if !doubt && fenced == 0 && !v.marked.Load() {
		return nil
	}
	unended.set(v.names(), doubt)
	return v.tell(doubt)
}

// doubts notes how a request came back from the lane that is not simply done, or comes after one that was not. What was begun before a write came back, by whatever worker, says nothing of that write: so that time is read anew.
func (g *Gate) doubts(r *Request, o Outcome) {
	doubt := &g.volume.doubt
	switch since := doubt.Load(); {
	case (o == Lost || o == Withdrawn) && r.Op.writes():
		raise(doubt, uint64(g.clock()))
	case o == OK && since != 0 && r.Began > int64(since):
		doubt.CompareAndSwap(since, 0)
	}
}
