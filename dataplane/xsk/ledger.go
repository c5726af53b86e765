//go:build !race

package xsk

// load and store are plain: a racing load finds some mark that was stored, which is all that is asked of it, and the
// rings order the rest (see UMEM.holders).

func load(m *mark) mark { return *m }

func store(m *mark, v mark) { *m = v }
