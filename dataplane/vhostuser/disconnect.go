package vhostuser

// Disconnect ends the connection there is, if any, and goes on listening: for a device that gave up on its front-end. One
// that reconnects begins anew.
func (b *Backend) Disconnect() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		_ = b.conn.Close()
	}
}
