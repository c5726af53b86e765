package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/vxlan/acl"
)

// portRoutes are those of what a port has beside its configuration and state.
var portRoutes = []route{
	{
		method: http.MethodGet, path: "/v1/ports/{name}/acl", id: "getPortACL", gives: control.ACLStatus{},
		summary: "The rules that a port's packets are judged by, and how many packets each of them decided about",
		serve:   func(s *Server, r *http.Request) (any, error) { return s.controller.ACL(r.PathValue("name")) },
	},
	{
		method: http.MethodPut, path: "/v1/ports/{name}/acl", id: "putPortACL", takes: acl.Policy{}, gives: Changes{},
		summary: "Give a port other rules: running flows are judged anew, counters of rules that stay go on",
		serve:   (*Server).putACL,
	},
	{
		method: http.MethodDelete, path: "/v1/ports/{name}/acl", id: "deletePortACL", gives: Changes{},
		summary: "Judge a port's packets no more: everything may pass",
		serve: func(s *Server, r *http.Request) (any, error) {
			return changed(s.controller.SetACL(r.Context(), r.PathValue("name"), nil))
		},
	},
	{
		method: http.MethodGet, path: "/v1/ports/{name}/acl/test", id: "testPortACL", gives: control.ACLTest{},
		summary: "Whether a packet would pass, and by which rule",
		query: []parameter{
			{name: "direction", doc: "in (to the guest) or out (from it)", required: true},
			{name: "packet", doc: "as tcp 10.0.0.1:1234 > 10.0.0.2:80", required: true},
		},
		serve: (*Server).testACL,
	},
	{
		method: http.MethodPut, path: "/v1/ports/{name}/workers", id: "putPortWorkers", takes: []int{}, gives: Changes{},
		summary: "Move a port's queues to other workers, while its guest stays connected; with an empty list the daemon chooses",
		serve:   (*Server).putWorkers,
	},
}

func (s *Server) putACL(r *http.Request) (any, error) {
	body, err := s.read(r)
	if err != nil {
		return nil, err
	}
	policy, err := config.ParseACL(body)
	if err != nil {
		return nil, err
	}
	return changed(s.controller.SetACL(r.Context(), r.PathValue("name"), policy))
}

func (s *Server) putWorkers(r *http.Request) (any, error) {
	body, err := s.read(r)
	if err != nil {
		return nil, err
	}
	workers, err := config.ParseWorkers(body)
	if err != nil {
		return nil, err
	}
	return changed(s.controller.Move(r.Context(), r.PathValue("name"), workers))
}

func (s *Server) testACL(r *http.Request) (any, error) {
	q := r.URL.Query()
	var d acl.Direction
	if err := d.UnmarshalText([]byte(q.Get("direction"))); err != nil {
		return nil, bad("direction: %v", err)
	}
	packet, err := acl.ParseTuple(q.Get("packet"))
	if err != nil {
		return nil, bad("packet: %v", err)
	}
	return s.controller.TestACL(r.PathValue("name"), d, packet)
}

// ACL returns the rules that a port's packets are judged by, with their counters.
func (c *Client) ACL(ctx context.Context, port string) (control.ACLStatus, error) {
	return get[control.ACLStatus](ctx, c, portPath(port)+"/acl")
}

// TestACL tells what would become of a packet by a port's rules.
func (c *Client) TestACL(ctx context.Context, port string, d acl.Direction, packet acl.Tuple) (control.ACLTest, error) {
	q := url.Values{"direction": {d.String()}, "packet": {packet.String()}}
	return get[control.ACLTest](ctx, c, portPath(port)+"/acl/test?"+q.Encode())
}

// PutACL gives a port other rules.
func (c *Client) PutACL(ctx context.Context, port string, p acl.Policy) ([]control.Change, error) {
	return c.put(ctx, portPath(port)+"/acl", p)
}

// DeleteACL takes a port's rules away: everything may pass.
func (c *Client) DeleteACL(ctx context.Context, port string) ([]control.Change, error) {
	var out Changes
	err := c.do(ctx, http.MethodDelete, portPath(port)+"/acl", nil, &out)
	return out.Changes, err
}

// Move gives a port's queues to other workers; without any the daemon chooses.
func (c *Client) Move(ctx context.Context, port string, workers []int) ([]control.Change, error) {
	if workers == nil {
		workers = []int{}
	}
	return c.put(ctx, portPath(port)+"/workers", workers)
}

func portPath(name string) string { return "/v1/ports/" + url.PathEscape(name) }
