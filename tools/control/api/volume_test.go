package api_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/api"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

const exampleDisks = `
volume-groups: [{name: gold, limits: {iops: 5}}]
volumes: [{name: v1, socket: /run/v1.sock, source: "nbd://192.0.2.9/v1", volume-group: gold}]
`

func TestVolumes(t *testing.T) {
	grown := uint64(1 << 30)
	e := &controltest.Engine{
		Store: func(s config.VolumeSource) (control.StoreStatus, error) {
			if strings.Contains(s.Source, "nobody") {
				return control.StoreStatus{}, fmt.Errorf("%s does not answer: start it: %w", s.Source, control.ErrStore)
			}
			return control.StoreStatus{Description: "an NBD server", Size: grown, BlockSize: 512, FUA: s.TLS != nil}, nil
		},
		Exports: []control.VolumeExport{{Source: "nbd://192.0.2.9/v1", Description: "the first"}},
	}
	_, socket := serve(t, e, exampleDisks)
	c, ctx := dial(t, socket), t.Context()
	e.Calls()

	v, err := c.Volume(ctx, "v1")
	if err != nil || v.Config.Serial != "v1" || v.Status == nil || v.Status.State != control.StateDisconnected {
		t.Errorf("%+v %v", v, err)
	}
	if list, err := c.Volumes(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if g, err := c.VolumeGroup(ctx, "gold"); err != nil || g.Config.Limits.IOPS != 5 || g.Status != nil {
		t.Errorf("%+v %v", g, err)
	}
	if list, err := c.VolumeGroups(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if s, err := c.ResizeVolume(ctx, "v1"); err != nil || s.Name != "v1" {
		t.Errorf("%+v %v", s, err)
	}
	if r, err := c.CheckVolume(ctx, v.Config.From()); err != nil || r.Store.Size != grown || r.Source != v.Config.Source || r.Took <= 0 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := c.CheckVolume(ctx, config.VolumeSource{Source: "nbds://192.0.2.9/", TLS: &config.TLS{CA: "/ca"}}); err != nil || !r.Store.FUA {
		t.Errorf("%+v %v", r, err)
	}
	if list, err := c.VolumeExports(ctx, config.VolumeSource{Source: "nbd://192.0.2.9"}); err != nil || len(list) != 1 || list[0] != e.Exports[0] {
		t.Errorf("%+v %v", list, err)
	}
	refused := func(err error, code api.Code, want string) {
		t.Helper()
		var e *api.Error
		if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, want) {
			t.Errorf("got %v, want %s: %s", err, code, want)
		}
	}
	_, err = c.CheckVolume(ctx, config.VolumeSource{Source: "nbd://nobody"})
	refused(err, api.CodeStore, "nbd://nobody does not answer: start it")
	_, err = c.CheckVolume(ctx, config.VolumeSource{Source: "iscsi://h"})
	refused(err, api.CodeInvalid, `has the scheme "iscsi"`)
	_, err = c.VolumeExports(ctx, config.VolumeSource{})
	refused(err, api.CodeInvalid, "has no source")
	_, err = c.ResizeVolume(ctx, "v9")
	refused(err, api.CodeNotFound, `there is no volume "v9"`)
	_, err = c.Delete(ctx, control.KindVolumeGroup, "gold")
	refused(err, api.CodeConflict, "volume group gold is in use by volume v1, delete that first")

	v.Config.Limits.IOPS = 7
	if changes, err := c.PutVolume(ctx, v.Config); err != nil || strings.Join(e.Calls(), ", ") != "UpdateVolume v1" {
		t.Errorf("%v %v", changes, err)
	}
	if _, err := c.PutVolumeGroup(ctx, config.VolumeGroup{Name: "silver"}); err != nil {
		t.Error(err)
	}
	for _, gone := range []struct {
		kind control.Kind
		name string
	}{{control.KindVolume, "v1"}, {control.KindVolumeGroup, "gold"}, {control.KindVolumeGroup, "silver"}} {
		if _, err := c.Delete(ctx, gone.kind, gone.name); err != nil {
			t.Error(err)
		}
	}
	if calls := strings.Join(e.Calls(), ", "); calls != "AddVolumeGroup silver, RemoveVolume v1, RemoveVolumeGroup gold, RemoveVolumeGroup silver" {
		t.Error(calls)
	}
}
