package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// ErrNoDaemon says that nobody answers on the control socket.
var ErrNoDaemon = errors.New("no shuntd answers")

// maxAnswer bounds what a client reads. The counters of some ten thousand ports fit.
const maxAnswer = 64 << 20

// Client calls the API. Its methods may be called by many goroutines. An answer that is an error is an *Error.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the daemon with this control socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 1}}}
}

// Close ends the idle connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the state of the daemon.
func (c *Client) Status(ctx context.Context) (control.Status, error) {
	return get[control.Status](ctx, c, "/v1/status")
}

// Config returns the running configuration.
func (c *Client) Config(ctx context.Context) (*config.Config, error) {
	return get[*config.Config](ctx, c, "/v1/config")
}

// Uplinks returns all uplinks.
func (c *Client) Uplinks(ctx context.Context) ([]Uplink, error) {
	return get[[]Uplink](ctx, c, "/v1/uplinks")
}

// Uplink returns one uplink.
func (c *Client) Uplink(ctx context.Context, name string) (Uplink, error) {
	return get[Uplink](ctx, c, "/v1/uplinks/"+url.PathEscape(name))
}

// Networks returns all networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return get[[]Network](ctx, c, "/v1/networks")
}

// Network returns one network.
func (c *Client) Network(ctx context.Context, name string) (Network, error) {
	return get[Network](ctx, c, "/v1/networks/"+url.PathEscape(name))
}

// Ports returns all ports.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return get[[]Port](ctx, c, "/v1/ports")
}

// Port returns one port.
func (c *Client) Port(ctx context.Context, name string) (Port, error) {
	return get[Port](ctx, c, "/v1/ports/"+url.PathEscape(name))
}

// Stats returns the counters of all objects, or of those with a name.
func (c *Client) Stats(ctx context.Context, name string) (control.Stats, error) {
	query := ""
	if name != "" {
		query = "?name=" + url.QueryEscape(name)
	}
	return get[control.Stats](ctx, c, "/v1/stats"+query)
}

// Drops returns every drop counter that is not zero.
func (c *Client) Drops(ctx context.Context) ([]control.Drop, error) {
	return get[[]control.Drop](ctx, c, "/v1/drops")
}

// FDB returns a network's forwarding table.
func (c *Client) FDB(ctx context.Context, network string) ([]control.FDBEntry, error) {
	return get[[]control.FDBEntry](ctx, c, "/v1/fdb?network="+url.QueryEscape(network))
}

// Apply makes want the running configuration. After a failure in part the error is an *Error that has the changes.
func (c *Client) Apply(ctx context.Context, want *config.Config) ([]control.Change, error) {
	return c.put(ctx, "/v1/config", want)
}

// PutUplink adds an uplink to the running configuration, or changes it.
func (c *Client) PutUplink(ctx context.Context, u config.Uplink) ([]control.Change, error) {
	return c.put(ctx, "/v1/uplinks/"+url.PathEscape(u.Name), u)
}

// PutNetwork adds a network to the running configuration, or changes it.
func (c *Client) PutNetwork(ctx context.Context, n config.Network) ([]control.Change, error) {
	return c.put(ctx, "/v1/networks/"+url.PathEscape(n.Name), n)
}

// PutPort adds a port to the running configuration, or changes it.
func (c *Client) PutPort(ctx context.Context, p config.Port) ([]control.Change, error) {
	return c.put(ctx, "/v1/ports/"+url.PathEscape(p.Name), p)
}

// Delete removes an object from the running configuration.
func (c *Client) Delete(ctx context.Context, kind control.Kind, name string) ([]control.Change, error) {
	var out Changes
	err := c.do(ctx, http.MethodDelete, "/v1/"+string(kind)+"s/"+url.PathEscape(name), nil, &out)
	return out.Changes, err
}

func (c *Client) put(ctx context.Context, path string, body any) ([]control.Change, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	var out Changes
	err = c.do(ctx, http.MethodPut, path, text, &out)
	return out.Changes, err
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	err := c.do(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	response, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return c.refused(response)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("shuntd's answer broke off: %w", err)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("shuntd's answer is not understood: is it of this version? %w", err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://shuntd"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return response, nil
}

// refused makes the error of an answer that is one.
func (c *Client) refused(response *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("shuntd's answer broke off: %w", err)
	}
	var e errorBody
	if err := json.Unmarshal(text, &e); err != nil || e.Error.Code == "" {
		return fmt.Errorf("what answers on %s is no shuntd: HTTP status %s", c.socket, response.Status)
	}
	return &Error{Code: e.Error.Code, Message: e.Error.Message, Problems: e.Problems, Changes: e.Changes}
}

// unreachable says what to do about a request that got no answer.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w on %s: start it, or name its socket with --socket", ErrNoDaemon, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to open %s: be root, or in the group that control.group names", c.socket)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("ask shuntd on %s: %w", c.socket, err)
}
