package api

import (
	"net/http"
	"slices"

	"github.com/shuntio/shunt/docs"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// route is one operation of the API: the server answers by it, and docs/openapi.yaml is made of it.
type route struct {
	method, path string
	// id names the operation for programs that are generated from the document, summary says what it does.
	id, summary string
	query       []parameter
	// takes and gives are values of the types that the body and the answer are; nil: there is no body.
	takes, gives any
	serve        func(s *Server, r *http.Request) (any, error)
	// stream answers in place of serve, where the answer has no end that is known at its beginning. An error that it returns is answered as serve's
	// is, so it returns one only before it writes.
	stream func(s *Server, w http.ResponseWriter, r *http.Request) error
	// media is the type of what stream writes.
	media string
}

// parameter is one of a route's query.
type parameter struct {
	name, doc string
	required  bool
}

// routes is the whole API.
var routes = append([]route{
	{
		method: http.MethodGet, path: "/v1/status", id: "getStatus", gives: control.Status{},
		summary: "State of the daemon, its workers and everything it serves",
		serve:   func(s *Server, _ *http.Request) (any, error) { return s.controller.Status(), nil },
	},
	{
		method: http.MethodGet, path: "/v1/config", id: "getConfig", gives: config.Config{},
		summary: "Running configuration",
		serve:   func(s *Server, _ *http.Request) (any, error) { return s.controller.Config(), nil },
	},
	{
		method: http.MethodPut, path: "/v1/config", id: "putConfig", takes: config.Config{}, gives: Changes{},
		summary: "Make a configuration the running one: objects that are not in it are removed, those that did not change are not touched",
		serve:   (*Server).putConfig,
	},
	{
		method: http.MethodGet, path: "/v1/stats", id: "getStats", gives: control.Stats{},
		summary: "Counters of all objects",
		query:   []parameter{{name: "name", doc: "only objects of this name"}},
		serve:   (*Server).stats,
	},
	{
		method: http.MethodGet, path: "/v1/drops", id: "getDrops", gives: []control.Drop{},
		summary: "Every drop counter that is not zero",
		serve:   func(s *Server, _ *http.Request) (any, error) { return s.controller.Stats().DropList(), nil },
	},
	{
		method: http.MethodGet, path: "/v1/fdb", id: "getFDB", gives: []control.FDBEntry{},
		summary: "Forwarding table of a network",
		query:   []parameter{{name: "network", doc: "name of the network", required: true}},
		serve:   (*Server).fdb,
	},
	{
		method: http.MethodGet, path: "/v1/captures", id: "listCaptures", gives: []control.CaptureStatus{},
		summary: "Captures that run",
		serve:   func(s *Server, _ *http.Request) (any, error) { return s.controller.Captures(), nil },
	},
	{
		method: http.MethodPost, path: "/v1/captures", id: "startCapture", takes: control.CaptureOptions{}, media: mediaPcapng,
		summary: "Capture packets: the answer is a stream of pcapng, until there are as many as asked for, the capture is deleted or the connection ends",
		stream:  (*Server).capture,
	},
	{
		method: http.MethodDelete, path: "/v1/captures/{id}", id: "endCapture", gives: control.CaptureStatus{},
		summary: "End a capture in good order: its stream ends with statistics",
		serve:   (*Server).endCapture,
	},
	{
		method: http.MethodGet, path: "/openapi.yaml", id: "getOpenAPI", media: "application/yaml",
		summary: "This document",
		stream: func(_ *Server, w http.ResponseWriter, _ *http.Request) error {
			return writeDocument(w, "application/yaml", docs.OpenAPI)
		},
	},
	{
		method: http.MethodGet, path: "/openapi.json", id: "getOpenAPIJSON", media: "application/json",
		summary: "This document, as JSON",
		stream:  (*Server).openAPIJSON,
	},
}, slices.Concat(objectRoutes(), portRoutes, volumeRoutes)...)

// objectRoutes are those of uplinks, networks and ports.
func objectRoutes() (all []route) {
	for _, k := range kinds {
		all = append(all, route{
			method: http.MethodGet, path: "/v1/" + k.plural, id: "list" + k.title + "s", gives: k.objects,
			summary: "All " + k.plural + ", configuration and state",
			serve:   func(s *Server, _ *http.Request) (any, error) { return k.list(s.controller, ""), nil },
		}, route{
			method: http.MethodGet, path: "/v1/" + k.plural + "/{name}", id: "get" + k.title, gives: k.object,
			summary: "One " + string(k.kind) + ", configuration and state",
			serve:   func(s *Server, r *http.Request) (any, error) { return s.get(r, k) },
		}, route{
			method: http.MethodPut, path: "/v1/" + k.plural + "/{name}", id: "put" + k.title, takes: k.config, gives: Changes{},
			summary: "Add or change one " + string(k.kind) + " of the running configuration",
			serve:   func(s *Server, r *http.Request) (any, error) { return s.put(r, k) },
		}, route{
			method: http.MethodDelete, path: "/v1/" + k.plural + "/{name}", id: "delete" + k.title, gives: Changes{},
			summary: "Remove one " + string(k.kind) + " from the running configuration",
			serve:   func(s *Server, r *http.Request) (any, error) { return s.delete(r, k) },
		})
	}
	return all
}
