package file

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A file system that somebody else serves may leave open, stat and close without an answer, and the kernel lets nobody out who has asked. So another goroutine asks, which is
// left behind with its thread if it takes too long. That is done once for a path: as long as somebody hangs there, nobody else begins.
//
// answerTime is how long a file system may take to tell what it is asked; tests change it.
var answerTime = 3 * time.Second

// closeTime is how long it may take to close a file, which nobody has a use for any more.
const closeTime = time.Second

// ErrNoAnswer says that a file system hangs.
var ErrNoAnswer = errors.New("its file system does not answer: look after who serves it")

// leftAt are the paths where somebody was left behind, and how many.
var leftAt struct {
	sync.Mutex
	at map[string]int
}

// hangs tells whether somebody was left behind at a path, and notes that there is one more, or one less.
func hangs(path string, more int) bool {
	leftAt.Lock()
	defer leftAt.Unlock()
	before := leftAt.at[path]
	switch now := before + more; {
	case now == 0:
		delete(leftAt.at, path)
	case leftAt.at == nil:
		leftAt.at = map[string]int{path: now}
	default:
		leftAt.at[path] = now
	}
	return before > 0
}

// ask runs fn, which asks a file system, as long as ctx at most. late gets what comes after that; nil: nobody.
func ask[T any](ctx context.Context, path string, fn func() (T, error), late func(T)) (answer T, err error) {
	if hangs(path, 0) {
		return answer, ErrNoAnswer
	}
	var mu sync.Mutex
	given, left := false, false
	done := make(chan struct{})
	go func() {
		a, e := fn()
		mu.Lock()
		defer mu.Unlock()
		if left {
			if e == nil && late != nil {
				late(a)
			}
			hangs(path, -1)
			return
		}
		answer, err, given = a, e, true
		close(done)
	}()
	select {
	case <-done:
		return answer, err
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	if given {
		return answer, err
	}
	left = true
	hangs(path, 1)
	return answer, ErrNoAnswer
}
