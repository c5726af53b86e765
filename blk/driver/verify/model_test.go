package verify

import (
	"errors"
	"testing"
)

// story is a model of one unit of one block, told what happens step by step.
type story struct {
	*testing.T
	m *Model
}

func newStory(t *testing.T) *story { return &story{T: t, m: newModel(1, blockSize, 9, zeroes, false)} }

// write is one that ends well; it returns its generation.
func (s *story) write() uint64 {
	issued, _ := s.m.beginWrite(0, 1, data, true)
	s.m.endWrite(0, 1, issued, true)
	return issued
}

// read finds a generation, 0 for zeroes.
func (s *story) read(generation uint64) error {
	b := make([]byte, blockSize)
	if generation != 0 {
		stamp{generation: generation, seed: 9}.write(b)
	}
	issued, _ := s.m.beginRead(0, 1, true)
	return s.m.endRead(0, 1, issued, b)
}

func (s *story) flush(ok bool) error { return s.m.endFlush(s.m.beginFlush(), ok) }

func (s *story) crash() { s.m.beginCrash(); s.m.endCrash() }

func (s *story) is(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

func (s *story) isNot(err error) {
	s.Helper()
	if !errors.Is(err, ErrData) {
		s.Errorf("not found: %v", err)
	}
}

func TestModel(t *testing.T) {
	for name, tell := range map[string]func(*story){
		"the last write is there": func(s *story) { a, b := s.write(), s.write(); s.is(s.read(b)); s.isNot(s.read(a)) },
		"nothing is made up":      func(s *story) { s.write(); s.isNot(s.read(1 << 40)) },
		"a write under way may be there or not, and then is": func(s *story) {
			a := s.write()
			b, _ := s.m.beginWrite(0, 1, data, true)
			s.is(s.read(b))
			s.is(s.read(a))
			s.m.endWrite(0, 1, b, true)
			s.isNot(s.read(a))
		},
		"a failed write may be there or not, until the next": func(s *story) {
			a := s.write()
			b, _ := s.m.beginWrite(0, 1, data, true)
			s.m.endWrite(0, 1, b, false)
			s.is(s.read(a))
			s.isNot(s.read(b)) // it was seen not to be
			c := s.write()
			s.isNot(s.read(a))
			s.is(s.read(c))
		},
		"overlapping writes end in any order, and stay": func(s *story) {
			a, _ := s.m.beginWrite(0, 1, data, true)
			b, _ := s.m.beginWrite(0, 1, data, true)
			s.m.endWrite(0, 1, b, true)
			s.m.endWrite(0, 1, a, true)
			s.is(s.read(b))
			s.isNot(s.read(a))
		},
		"discarded: zeroes, or not": func(s *story) {
			a := s.write()
			d, _ := s.m.beginWrite(0, 1, discarded, true)
			s.m.endWrite(0, 1, d, true)
			s.is(s.read(0))
			s.is(s.read(a))
			s.write()
			s.isNot(s.read(0))
		},
		"a crash loses what was not flushed, once told": func(s *story) {
			a := s.write()
			s.is(s.flush(true))
			s.write()
			s.crash()
			s.is(s.read(a))
			s.is(s.flush(false))
			s.is(s.flush(true))
			s.is(s.read(a))
			s.isNot(s.read(0))
		},
		"a crash that nobody is told of loses nothing": func(s *story) {
			a := s.write()
			s.is(s.flush(true))
			s.write()
			s.crash()
			s.is(s.read(a))
			s.isNot(s.flush(true))
		},
		"nor does it when the loss is seen later": func(s *story) {
			a := s.write()
			s.is(s.flush(true))
			b := s.write()
			s.crash()
			s.is(s.flush(true))
			s.isNot(s.read(a))
			s.is(s.read(b))
		},
		"who was told of the first crash need not be told again by the second": func(s *story) {
			s.write()
			s.crash()
			s.is(s.flush(false))
			s.crash()
			s.is(s.read(0))
			s.is(s.flush(true))
		},
		"two flushes at once, one of which fails": func(s *story) {
			s.write()
			s.crash()
			a := s.m.beginFlush()
			s.is(s.read(0))
			s.is(s.flush(true))
			s.is(s.m.endFlush(a, false))
			s.is(s.read(0))
		},
		"two flushes at once, none of which fails": func(s *story) {
			s.write()
			s.crash()
			a := s.m.beginFlush()
			s.is(s.read(0))
			s.is(s.flush(true))
			s.isNot(s.m.endFlush(a, true))
		},
		"a flush covers no later write": func(s *story) {
			f := s.m.beginFlush()
			s.write()
			s.is(s.m.endFlush(f, true))
			s.crash()
			s.is(s.flush(false))
			s.is(s.read(0))
		},
	} {
		t.Run(name, func(t *testing.T) { tell(newStory(t)) })
	}
}
