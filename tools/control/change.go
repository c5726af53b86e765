package control

import (
	"errors"
	"fmt"
	"strings"
)

// Action is what was done with an object.
type Action string

// The actions. A replaced object was removed and added, which its guest or its networks noticed; a failed one is as it
// was before, or absent when it was new.
const (
	Created   Action = "created"
	Updated   Action = "updated"
	Replaced  Action = "replaced"
	Removed   Action = "removed"
	Unchanged Action = "unchanged"
	Failed    Action = "failed"
)

// Change says what became of one object.
type Change struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"`
	Action Action `json:"action"`
	Error  string `json:"error,omitempty"` // why it failed, one sentence
}

// FailedError says that some objects could not be brought to what was wanted. It wraps their errors.
type FailedError struct {
	Changes []Change // those that failed
	errs    []error
}

func (e *FailedError) Error() string {
	lines := make([]string, len(e.Changes))
	for i, c := range e.Changes {
		lines[i] = fmt.Sprintf("%s %s: %s", c.Kind, c.Name, c.Error)
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors of the engine.
func (e *FailedError) Unwrap() []error { return e.errs }

// IsConflict reports whether all that failed did so for something in the way.
func (e *FailedError) IsConflict() bool {
	for _, err := range e.errs {
		if !errors.Is(err, ErrConflict) {
			return false
		}
	}
	return len(e.errs) > 0
}
