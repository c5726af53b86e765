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

func (c Change) object() object { return object{c.Kind, c.Name} }

// FailedError says that some objects could not be brought to what was wanted. It wraps their errors.
type FailedError struct {
	Changes []Change // those that failed
	errs    []error
}

func (e *FailedError) Error() string { return strings.Join(e.Reasons(), "\n") }

// Reasons are a sentence for each object that failed by itself. Those that failed with it, because they need it, are in
// Changes.
func (e *FailedError) Reasons() []string {
	var reasons []string
	for i, c := range e.Changes {
		if !errors.Is(e.errs[i], errFollows) {
			reasons = append(reasons, fmt.Sprintf("%s %s: %s", c.Kind, c.Name, c.Error))
		}
	}
	return reasons
}

// Unwrap returns the errors of the engine.
func (e *FailedError) Unwrap() []error { return e.errs }

// IsConflict reports whether all that failed did so for something in the way, or with something that did.
func (e *FailedError) IsConflict() bool {
	for _, err := range e.errs {
		if !errors.Is(err, ErrConflict) {
			return false
		}
	}
	return len(e.errs) > 0
}
