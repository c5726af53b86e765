package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/shuntio/shunt/tools/control"
)

// A capture is one request: its answer is the file, as it grows. It ends when the capture does; a caller that wants it to end in good order, with
// statistics, deletes the capture by its number and reads on. A caller that dies ends it by that, one that stalls after captureStall.
const (
	mediaPcapng   = "application/x-pcapng"
	captureStall  = 30 * time.Second
	headerCapture = "Shunt-Capture" // its number
	// Behind the stream, as trailers.
	headerPackets = "Shunt-Packets"
	headerMissed  = "Shunt-Missed"
)

func (s *Server) capture(w http.ResponseWriter, r *http.Request) error {
	body, err := s.read(r)
	if err != nil {
		return err
	}
	var o control.CaptureOptions
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return bad("the body is no capture's options: %v", err)
	}
	if d.More() {
		return bad("the body is no capture's options: something comes after them")
	}
	out := &stream{w: w, control: http.NewResponseController(w), stall: s.stall}
	if err := out.control.SetReadDeadline(time.Time{}); err != nil { // ReadTimeout would end the request, though all of it was read
		return err
	}
	counters, err := s.controller.Capture(r.Context(), o, func(id uint64) io.Writer {
		h := w.Header()
		h.Set("Content-Type", mediaPcapng)
		h.Set("Cache-Control", "no-store")
		h.Set("Trailer", headerPackets+", "+headerMissed)
		h.Set(headerCapture, strconv.FormatUint(id, 10))
		w.WriteHeader(http.StatusOK)
		out.begun = true
		_, _ = out.Write(nil) // the caller learns the number at once
		return out
	})
	switch {
	case err != nil && out.begun: // a half file must not look like a whole one
		s.log.Warn("capture broke off", "error", err)
		panic(http.ErrAbortHandler)
	case err != nil:
		return err
	}
	_ = out.control.SetWriteDeadline(time.Now().Add(s.stall))
	w.Header().Set(headerPackets, strconv.FormatUint(counters.Packets, 10))
	w.Header().Set(headerMissed, strconv.FormatUint(counters.Missed, 10))
	return nil
}

// stream sends what is written at once, to a caller that does not stall.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	begun   bool
}

func (s *stream) Write(b []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.stall)); err != nil {
		return 0, err
	}
	n, err := s.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, s.control.Flush()
}

func (s *Server) endCapture(r *http.Request) (any, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return nil, bad("%q is no capture's number", r.PathValue("id"))
	}
	return s.controller.EndCapture(id)
}

// CaptureStream is a capture that runs, as its caller reads it.
type CaptureStream struct {
	io.Reader // pcapng, until the capture has ended
	ID        uint64
	response  *http.Response
}

// Counters are those at the end, once everything was read; false before, or if the capture broke off.
func (c *CaptureStream) Counters() (control.CaptureCounters, bool) {
	packets, err := strconv.ParseUint(c.response.Trailer.Get(headerPackets), 10, 64)
	missed, err2 := strconv.ParseUint(c.response.Trailer.Get(headerMissed), 10, 64)
	return control.CaptureCounters{Packets: packets, Missed: missed}, err == nil && err2 == nil
}

// Close ends the capture, if it has not ended, and frees the connection.
func (c *CaptureStream) Close() error { return c.response.Body.Close() }

// Capture begins a capture. It ends with ctx at the latest, and abruptly then.
func (c *Client) Capture(ctx context.Context, o control.CaptureOptions) (*CaptureStream, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	response, err := c.send(ctx, http.MethodPost, "/v1/captures", body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		return nil, c.refused(response)
	}
	id, err := strconv.ParseUint(response.Header.Get(headerCapture), 10, 64)
	if err != nil {
		return nil, errors.Join(errors.New("shuntd's answer has no number of the capture: is it of this version?"), response.Body.Close())
	}
	return &CaptureStream{Reader: response.Body, ID: id, response: response}, nil
}

// Captures returns the captures that run.
func (c *Client) Captures(ctx context.Context) ([]control.CaptureStatus, error) {
	return get[[]control.CaptureStatus](ctx, c, "/v1/captures")
}

// EndCapture ends a capture in good order.
func (c *Client) EndCapture(ctx context.Context, id uint64) error {
	return c.do(ctx, http.MethodDelete, "/v1/captures/"+strconv.FormatUint(id, 10), nil, &control.CaptureStatus{})
}
