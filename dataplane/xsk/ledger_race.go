//go:build race

package xsk

import "sync/atomic"

// The race detector does not see how the kernel's rings order the ledger, and what is in a frame, between workers. It is told here.

func load(m *mark) mark { return atomic.LoadUint32(m) }

func store(m *mark, v mark) { atomic.StoreUint32(m, v) }
