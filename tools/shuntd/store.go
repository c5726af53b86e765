package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/shuntio/shunt/blk"
	"github.com/shuntio/shunt/blk/file"
	"github.com/shuntio/shunt/blk/nbd"
	"github.com/shuntio/shunt/blk/nvmetcp"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// Stores by the scheme of a source; this file alone knows which there are.

// storeOptions are what of a volume, or of a look at a source, its store is to know.
type storeOptions struct {
	config.VolumeSource
	quiesce time.Duration
	lanes   int // workers that will use it
	watcher blk.Watcher
}

// checkSources tells which volumes have sources that their stores do not understand.
func checkSources(c *config.Config) (wrong []error) {
	for i, v := range c.Volumes {
		var err error
		switch config.Scheme(v.Source) {
		case config.SchemeFile:
			_, err = file.Parse(v.Source)
		case config.SchemeNVMe:
			_, err = storeOptions{VolumeSource: v.From()}.nvme()
		default:
			err = nbd.CheckURI(v.Source)
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("volumes[%d].source: %w", i, err))
		}
	}
	return wrong
}

// openStore reaches a store. It may take as long as ctx.
func openStore(ctx context.Context, o storeOptions) (blk.Store, error) {
	switch config.Scheme(o.Source) {
	case config.SchemeFile:
		path, err := file.Parse(o.Source)
		if err != nil {
			return nil, err
		}
		s, err := file.Open(path, file.Options{Direct: o.Direct == nil || *o.Direct, ReadOnly: o.ReadOnly, Patience: -1})
		if err != nil {
			return nil, err
		}
		return s, nil
	case config.SchemeNVMe:
		options, err := o.nvme()
		if err != nil {
			return nil, err
		}
		s, err := nvmetcp.Open(ctx, options)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return nbd.Open(ctx, o.nbd())
}

func (o storeOptions) nbd() nbd.Options {
	n := nbd.Options{URI: o.Source, ReadOnly: o.ReadOnly, Quiesce: o.quiesce, Watcher: o.watcher}
	if t := o.TLS; t != nil {
		n.TLS = nbd.TLS{CA: t.CA, Cert: t.Cert, Key: t.Key, ServerName: t.ServerName}
	}
	return n
}

func (o storeOptions) nvme() (nvmetcp.Options, error) {
	n, err := nvmetcp.ParseURL(o.Source)
	if err != nil {
		return n, &refusal{err.Error(), []error{err, errSource}}
	}
	n.HeaderDigest, n.DataDigest = n.HeaderDigest || o.Digests.Header, n.DataDigest || o.Digests.Data
	if o.HostNQN != "" {
		n.HostNQN = o.HostNQN
	}
	n.Queues, n.Quiesce, n.Watcher = o.lanes, o.quiesce, o.watcher
	return n, nil
}

// errSource says that a source cannot be, whatever is at the place it names.
var errSource = errors.New("bad source")

// lasts tells whether the reason why a store could not be opened is one that the operator has to remove, as that a file is not there. A server that
// cannot be reached, or has not what it should have, may have it tomorrow; whoever holds a file's lock may let go of it.
func lasts(source string, err error) bool {
	return errors.Is(err, errSource) || errors.Is(err, nbd.ErrURI) ||
		config.Scheme(source) == config.SchemeFile && !errors.Is(err, file.ErrLocked) && !errors.Is(err, file.ErrBusy) && !errors.Is(err, file.ErrNoAnswer)
}

// VolumeExports implements control.Engine.
func (e *engine) VolumeExports(ctx context.Context, s config.VolumeSource) (list []control.VolumeExport, err error) {
	switch config.Scheme(s.Source) {
	case config.SchemeFile:
		return nil, storeError(fmt.Errorf("%s is a file, not a server that has several: name one, as nbd://192.0.2.9", s.Source))
	case config.SchemeNVMe:
		list, err = discover(ctx, s.Source)
	default:
		list, err = listExports(ctx, s)
	}
	if err != nil {
		return nil, storeError(err)
	}
	return list, nil
}

func listExports(ctx context.Context, s config.VolumeSource) (list []control.VolumeExport, err error) {
	exports, err := nbd.List(ctx, storeOptions{VolumeSource: s}.nbd())
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(s.Source)
	if err != nil {
		return nil, err
	}
	for _, e := range exports {
		u.Path, u.RawPath = "/"+e.Name, ""
		list = append(list, control.VolumeExport{Source: u.String(), Description: e.Description})
	}
	return list, nil
}

// discover asks the discovery controller at the host that a source names.
func discover(ctx context.Context, source string) (list []control.VolumeExport, err error) {
	u, err := url.Parse(source)
	if err != nil {
		return nil, err
	}
	log, err := nvmetcp.Discover(ctx, u.Host)
	if err != nil {
		return nil, err
	}
	for _, e := range log.Entries {
		description := e.Subsystem + " over " + e.Transport
		if e.TLSRequired {
			description += ", TLS required"
		}
		place := url.URL{Scheme: config.SchemeNVMe, Host: net.JoinHostPort(e.Address, e.Service), Path: "/" + e.NQN}
		if e.Transport != "tcp" {
			place.Scheme = "nvme+" + e.Transport
		}
		list = append(list, control.VolumeExport{Source: place.String(), Description: description})
	}
	return list, nil
}

// storeError makes the controller's of what went wrong with a store.
func storeError(err error) error {
	r := refused(err).(*refusal)
	r.causes = append(r.causes, control.ErrStore)
	return r
}

// reasonOf is an error as a sentence about a volume, which is named where it is shown.
func reasonOf(err error) string { return strings.TrimSpace(refused(err).Error()) }

// CheckVolume implements control.Engine. A store that a volume has open is asked through that: a file is locked, and a server may serve one only.
func (e *engine) CheckVolume(ctx context.Context, s config.VolumeSource) (control.VolumeReport, error) {
	if v := e.openVolumeOf(s.Source); v != nil {
		return reportOf(v.Check(ctx))
	}
	o := storeOptions{VolumeSource: s, lanes: 1}
	v, err := blk.OpenVolume(blk.VolumeOptions{Name: "check", ReadOnly: s.ReadOnly, Open: func(w blk.Watcher) (blk.Store, error) {
		o.watcher = w
		return openStore(ctx, o)
	}})
	if err != nil {
		return control.VolumeReport{}, storeError(err)
	}
	report, err := reportOf(v.Check(ctx))
	return report, errors.Join(err, v.Close())
}

func reportOf(r blk.Report, err error) (control.VolumeReport, error) {
	if err != nil {
		return control.VolumeReport{}, storeError(err)
	}
	return control.VolumeReport{Store: *storeStatus(r.Info), Notes: r.Notes}, nil
}

func storeStatus(i blk.Info) *control.StoreStatus {
	return &control.StoreStatus{
		Description: i.Describe, Size: i.Size, BlockSize: max(i.BlockSize, 512), PhysicalBlock: i.PhysicalBlock, OptimalIO: i.OptimalIO,
		DiscardGranularity: i.DiscardGranularity, ReadOnly: i.ReadOnly, Rotational: i.Rotational,
		Flush: i.Flush, FUA: i.FUA, Discard: i.Discard, WriteZeroes: i.WriteZeroes, MultiWorker: i.Lanes != 1,
	}
}
