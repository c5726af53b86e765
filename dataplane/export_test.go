package dataplane

// Letters is how many functions wait for the worker.
func (w *Worker) Letters() int {
	w.mailbox.mu.Lock()
	defer w.mailbox.mu.Unlock()
	return len(w.mailbox.letters)
}

// Sleep is one turn of the sleep sequence. It does not wait, since its mailbox was rung.
func (w *Worker) Sleep() {
	w.mailbox.ring()
	w.sleep()
}

// Links are those the worker polls.
func (w *Worker) Links() []*Link { return w.links }
