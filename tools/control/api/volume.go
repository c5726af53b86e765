package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// volumeRoutes are those of what there is of volumes beside their configuration and state.
var volumeRoutes = []route{
	{
		method: http.MethodPost, path: "/v1/volumes/{name}/resize", id: "resizeVolume", gives: control.VolumeStatus{},
		summary: "Ask the volume's store anew how large it is, and tell the guest",
		serve: func(s *Server, r *http.Request) (any, error) {
			return s.controller.ResizeVolume(r.Context(), r.PathValue("name"))
		},
	},
	{
		method: http.MethodPost, path: "/v1/volume-checks", id: "checkVolume", takes: config.VolumeSource{}, gives: control.VolumeReport{},
		summary: "Connect to a store, and say what it is and can do",
		serve: func(s *Server, r *http.Request) (any, error) {
			source, err := s.source(r)
			if err != nil {
				return nil, err
			}
			return s.controller.CheckVolume(r.Context(), source)
		},
	},
	{
		method: http.MethodPost, path: "/v1/volume-exports", id: "listVolumeExports", takes: config.VolumeSource{}, gives: []control.VolumeExport{},
		summary: "What a storage server offers: the exports of NBD, whichever one the source names, or what an NVMe discovery controller knows",
		serve: func(s *Server, r *http.Request) (any, error) {
			source, err := s.source(r)
			if err != nil {
				return nil, err
			}
			return s.controller.VolumeExports(r.Context(), source)
		},
	},
}

func (s *Server) source(r *http.Request) (config.VolumeSource, error) {
	body, err := s.read(r)
	if err != nil {
		return config.VolumeSource{}, err
	}
	return config.ParseVolumeSource(body)
}

// Volumes returns all volumes.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	return get[[]Volume](ctx, c, "/v1/volumes")
}

// Volume returns one volume.
func (c *Client) Volume(ctx context.Context, name string) (Volume, error) {
	return get[Volume](ctx, c, "/v1/volumes/"+url.PathEscape(name))
}

// VolumeGroups returns all volume groups.
func (c *Client) VolumeGroups(ctx context.Context) ([]VolumeGroup, error) {
	return get[[]VolumeGroup](ctx, c, "/v1/volume-groups")
}

// VolumeGroup returns one volume group.
func (c *Client) VolumeGroup(ctx context.Context, name string) (VolumeGroup, error) {
	return get[VolumeGroup](ctx, c, "/v1/volume-groups/"+url.PathEscape(name))
}

// PutVolume adds a volume to the running configuration, or changes it.
func (c *Client) PutVolume(ctx context.Context, v config.Volume) ([]control.Change, error) {
	return c.put(ctx, "/v1/volumes/"+url.PathEscape(v.Name), v)
}

// PutVolumeGroup adds a volume group to the running configuration, or changes it.
func (c *Client) PutVolumeGroup(ctx context.Context, g config.VolumeGroup) ([]control.Change, error) {
	return c.put(ctx, "/v1/volume-groups/"+url.PathEscape(g.Name), g)
}

// ResizeVolume has the daemon ask a volume's store anew how large it is, and tell the guest.
func (c *Client) ResizeVolume(ctx context.Context, name string) (status control.VolumeStatus, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/volumes/"+url.PathEscape(name)+"/resize", nil, &status)
	return status, err
}

// CheckVolume has the daemon connect to a store, and say what it is.
func (c *Client) CheckVolume(ctx context.Context, s config.VolumeSource) (report control.VolumeReport, err error) {
	err = c.post(ctx, "/v1/volume-checks", s, &report)
	return report, err
}

// VolumeExports has the daemon ask a storage server what it offers.
func (c *Client) VolumeExports(ctx context.Context, s config.VolumeSource) (list []control.VolumeExport, err error) {
	err = c.post(ctx, "/v1/volume-exports", s, &list)
	return list, err
}

func (c *Client) post(ctx context.Context, path string, body, out any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, text, out)
}
