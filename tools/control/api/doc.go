// Package api carries the controller over a unix socket: HTTP/1.1, REST, JSON, net/http on both sides and nothing else.
//
//	GET    /v1/status              control.Status
//	GET    /v1/config              config.Config that runs
//	PUT    /v1/config              config.Config  -> Changes
//	GET    /v1/uplinks             []Object[config.Uplink, control.UplinkStatus]; the same for networks, ports, volumes and volume-groups
//	GET    /v1/uplinks/NAME        one of them
//	PUT    /v1/uplinks/NAME        config.Uplink  -> Changes
//	DELETE /v1/uplinks/NAME        -> Changes
//	GET    /v1/ports/NAME/acl      control.ACLStatus
//	PUT    /v1/ports/NAME/acl      acl.Policy  -> Changes
//	DELETE /v1/ports/NAME/acl      -> Changes
//	GET    /v1/ports/NAME/acl/test?direction=in&packet=...  control.ACLTest
//	PUT    /v1/ports/NAME/workers  []int  -> Changes
//	POST   /v1/volumes/NAME/resize control.VolumeStatus
//	POST   /v1/volume-checks       config.VolumeSource -> control.VolumeReport
//	POST   /v1/volume-exports      config.VolumeSource -> []control.VolumeExport
//	GET    /v1/stats[?name=NAME]   control.Stats
//	GET    /v1/drops               []control.Drop
//	GET    /v1/fdb?network=NAME    []control.FDBEntry
//	GET    /v1/captures            []control.CaptureStatus
//	POST   /v1/captures            control.CaptureOptions  -> a stream of pcapng
//	DELETE /v1/captures/ID         ends it in good order
//	GET    /openapi.yaml, .json    all this for programs
//
// A body is decoded as strictly as the configuration file. What PUT and DELETE change is the running configuration; the
// file stays as it is, and the next reload goes back to it. An error is
//
//	{"error": {"code": "invalid-config", "message": "..."}, "problems": [...], "changes": [...]}
//
// with problems when a configuration was refused, and changes when it was applied in part. The file's mode guards the
// socket: who may open it may do everything.
package api

import (
	"fmt"
	"net/http"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
)

// Changes is the answer to a change that succeeded.
type Changes struct {
	Changes []control.Change `json:"changes"`
}

// Object is a configured object and, once the engine holds it, its state.
type Object[C, S any] struct {
	Config C  `json:"config"`
	Status *S `json:"status,omitempty"`
}

// The kinds of objects that the API lists.
type (
	Uplink  = Object[config.Uplink, control.UplinkStatus]
	Network = Object[config.Network, control.NetworkStatus]
	Port    = Object[config.Port, control.PortStatus]
	Volume  = Object[config.Volume, control.VolumeStatus]
	// VolumeGroup has no state beside its configuration.
	VolumeGroup = Object[config.VolumeGroup, struct{}]
)

// Code says what kind of error an answer is.
type Code string

// The codes, each with its HTTP status.
const (
	CodeInvalid  Code = "invalid-config"     // 400: the body is no configuration, or breaks a rule
	CodeBad      Code = "bad-request"        // 400: the request misses something
	CodeNotFound Code = "not-found"          // 404: no object or no resource has this name
	CodeMethod   Code = "method-not-allowed" // 405
	CodeConflict Code = "conflict"           // 409: something else is in the way
	CodeRestart  Code = "restart-required"   // 409: this is read at start only
	CodeLarge    Code = "too-large"          // 413: the body
	CodeApply    Code = "apply-failed"       // 422: the host cannot do what the configuration says
	CodeStore    Code = "store-failed"       // 502: a volume's store cannot be reached, or is not as it must be
	CodeInternal Code = "internal"           // 500: a bug
	CodeStopping Code = "stopping"           // 503: the daemon is on its way out
)

var statusOf = map[Code]int{
	CodeInvalid: http.StatusBadRequest, CodeBad: http.StatusBadRequest, CodeNotFound: http.StatusNotFound,
	CodeMethod: http.StatusMethodNotAllowed, CodeConflict: http.StatusConflict, CodeRestart: http.StatusConflict,
	CodeLarge: http.StatusRequestEntityTooLarge, CodeApply: http.StatusUnprocessableEntity,
	CodeInternal: http.StatusInternalServerError, CodeStopping: http.StatusServiceUnavailable,
	CodeStore: http.StatusBadGateway,
}

// Error is an answer that is an error.
type Error struct {
	Code     Code
	Message  string
	Problems []config.Problem // of a configuration that was refused
	Changes  []control.Change // of one that was applied in part
}

func (e *Error) Error() string { return e.Message }

// errorBody is an Error on the wire.
type errorBody struct {
	Error struct {
		Code    Code   `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
	Problems []config.Problem `json:"problems,omitempty"`
	Changes  []control.Change `json:"changes,omitempty"`
}

func bad(format string, args ...any) *Error {
	return &Error{Code: CodeBad, Message: fmt.Sprintf(format, args...)}
}

func absent(format string, args ...any) *Error {
	return &Error{Code: CodeNotFound, Message: fmt.Sprintf(format, args...)}
}
