package peer

import "syscall"

// Pause makes testpmd stand still, or go on, so that it and others can be
// measured by turns. It answers no command meanwhile.
func (t *Testpmd) Pause(on bool) {
	if on {
		t.process.Signal(syscall.SIGSTOP)
		return
	}
	t.process.Signal(syscall.SIGCONT)
}
