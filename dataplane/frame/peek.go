package frame

// Peek returns the frame that Get will give after n others, empty; nil if there are not so many. It is still free: what is copied into it from
// memory that may fault is no loss to the pool. Get makes it empty again and leaves its bytes, so Append of as many as before finds them.
func (p *Pool) Peek(n int) *Frame {
	i := len(p.free) - 1 - n
	if n < 0 || i < 0 {
		return nil
	}
	f := p.free[i]
	f.Reset()
	return f
}
