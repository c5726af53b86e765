package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// Server answers for a controller.
type Server struct {
	controller *control.Controller
	log        *slog.Logger
	http       http.Server
	stall      time.Duration // after which a capture's caller that reads nothing is left
	large      chan struct{} // a place for each large body that is being read
}

// NewServer returns a server. Serve it on a Listener.
func NewServer(c *control.Controller, log *slog.Logger) *Server {
	s := &Server{controller: c, log: log, stall: captureStall, large: make(chan struct{}, largeBodies)}
	s.http = http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      5 * time.Minute, // a change of thousands of ports may take its time
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         watch,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve answers on l until Shutdown, and returns what else ended it.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(newCrowd(l, maxCallers)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	return nil
}

// Shutdown closes the listener and lets the requests under way finish, as long as ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.controller.EndCaptures() // they would not end by themselves
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, route := range routes {
		handler := s.answer(func(r *http.Request) (any, error) { return route.serve(s, r) })
		if route.stream != nil {
			handler = s.streamed(func(w http.ResponseWriter, r *http.Request) error { return route.stream(s, w, r) })
		}
		mux.Handle(route.method+" "+route.path, handler)
	}
	mux.Handle("/", s.answer(func(r *http.Request) (any, error) { return nil, unrouted(mux, r) }))
	return mux
}

func (s *Server) stats(r *http.Request) (any, error) {
	stats := s.controller.Stats()
	name := r.URL.Query().Get("name")
	if name == "" {
		return stats, nil
	}
	stats.Objects = slices.DeleteFunc(stats.Objects, func(o control.ObjectStats) bool { return o.Name != name })
	if len(stats.Objects) == 0 {
		return nil, absent("nothing named %q counts anything", name)
	}
	return stats, nil
}

func (s *Server) fdb(r *http.Request) (any, error) {
	network := r.URL.Query().Get("network")
	if network == "" {
		return nil, bad("name a network: /v1/fdb?network=NAME")
	}
	return s.controller.FDB(network)
}

func (s *Server) putConfig(r *http.Request) (any, error) {
	body, err := s.read(r)
	if err != nil {
		return nil, err
	}
	want, err := config.ParseJSON(body)
	if err != nil {
		return nil, err
	}
	return changed(s.controller.Apply(r.Context(), want))
}

func (s *Server) get(r *http.Request, k kind) (any, error) {
	if one := k.list(s.controller, r.PathValue("name")); one != nil {
		return one, nil
	}
	for _, f := range s.controller.Failed() {
		if f.Kind == k.kind && f.Name == r.PathValue("name") && f.Error != "" {
			return nil, absent("%s %s is not there: %s", f.Kind, f.Name, f.Error)
		}
	}
	return nil, absent("there is no %s %q", k.kind, r.PathValue("name"))
}

func (s *Server) put(r *http.Request, k kind) (any, error) {
	body, err := s.read(r)
	if err != nil {
		return nil, err
	}
	return changed(s.controller.Edit(r.Context(), func(running *config.Config) (*config.Config, error) {
		return k.with(running, r.PathValue("name"), body)
	}))
}

func (s *Server) delete(r *http.Request, k kind) (any, error) {
	return changed(s.controller.Delete(r.Context(), k.kind, r.PathValue("name")))
}

func changed(changes []control.Change, err error) (any, error) {
	if err != nil {
		var failed *control.FailedError
		if errors.As(err, &failed) {
			code := CodeApply
			if failed.IsConflict() {
				code = CodeConflict
			}
			return nil, &Error{Code: code, Message: err.Error(), Changes: changes}
		}
		return nil, err
	}
	return Changes{changes}, nil
}

// Bodies: what is small is read at once. Of the others, as large as a configuration may be, a few are read at a time; a caller has the server's
// ReadTimeout to send his.
const (
	smallBody   = 64 << 10
	largeBodies = 8
)

// read takes a body in whole, up to what a configuration may have.
func (s *Server) read(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, smallBody+1))
	if err == nil && len(body) > smallBody {
		select {
		case s.large <- struct{}{}:
		case <-r.Context().Done():
			return nil, bad("the body could not be read: %v", r.Context().Err())
		}
		defer func() { <-s.large }()
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(r.Body, config.MaxDocument+1-int64(len(body))))
		body = append(body, rest...)
	}
	switch {
	case err != nil:
		return nil, bad("the body could not be read: %v", err)
	case len(body) > config.MaxDocument:
		_, _ = io.CopyN(io.Discard, r.Body, 4*config.MaxDocument) // who is still writing would not read the answer
		return nil, &Error{Code: CodeLarge, Message: fmt.Sprintf("the body is larger than %d MiB", config.MaxDocument>>20)}
	case len(body) == 0:
		return nil, bad("the request has no body")
	}
	return body, nil
}

// answer writes what a handler returns.
func (s *Server) answer(h func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if value, err := h(r); err != nil {
			s.refuse(w, r, err)
		} else {
			write(w, http.StatusOK, value)
		}
	})
}

// streamed lets a handler write its answer by itself.
func (s *Server) streamed(h func(w http.ResponseWriter, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.refuse(w, r, err)
		}
	})
}

// refuse writes an error.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := classify(err)
	status := statusOf[e.Code]
	if status == http.StatusInternalServerError {
		s.log.Error("api request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	var body errorBody
	body.Error.Code, body.Error.Message, body.Problems, body.Changes = e.Code, e.Message, e.Problems, e.Changes
	write(w, status, body)
}

func write(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	_ = out.Encode(value) // the caller went away
}

// classify finds an error's code.
func classify(err error) *Error {
	var ours *Error
	var invalid *config.Error
	e := &Error{Code: CodeInternal, Message: err.Error()}
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &invalid):
		e.Code, e.Problems = CodeInvalid, invalid.Problems
	case errors.Is(err, control.ErrNotFound):
		e.Code = CodeNotFound
	case errors.Is(err, control.ErrRequest):
		e.Code = CodeBad
	case errors.Is(err, control.ErrRestart):
		e.Code = CodeRestart
	case errors.Is(err, control.ErrConflict):
		e.Code = CodeConflict
	case errors.Is(err, control.ErrStore):
		e.Code = CodeStore
	case errors.Is(err, control.ErrClosed):
		e.Code = CodeStopping
	}
	return e
}

// unrouted tells a wrong method from a wrong path.
func unrouted(mux *http.ServeMux, r *http.Request) error {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) > 0 {
		return &Error{Code: CodeMethod, Message: fmt.Sprintf("%s is not for %s: use %s", r.Method, r.URL.Path, strings.Join(allowed, " or "))}
	}
	return &Error{Code: CodeNotFound, Message: fmt.Sprintf("there is no %s here: the API begins at /v1/status", r.URL.Path)}
}
