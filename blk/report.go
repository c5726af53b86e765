package blk

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// VolumeState is how a volume fares.
type VolumeState struct {
	// State is the store's.
	State
	Info   Info
	Policy Policy
	// Unflushed is how many writes were acknowledged since the last flush.
	Unflushed uint64
	// Doubt: the store has lost acknowledged writes, and no flush of the guest's has failed yet to tell it. LossesTold is how many flushes have failed so.
	Doubt      bool
	LossesTold uint64
}

// State is for people and metrics. Anybody may ask, workers too.
func (v *Volume) State() VolumeState {
	return VolumeState{
		State: v.store.State(), Info: v.Info(), Policy: v.Policy(),
		Unflushed: v.ledger.unflushed(), Doubt: v.ledger.owed.Load(), LossesTold: v.ledger.failed.Load(),
	}
}

// Stats reads the counters. What a worker has that does not come to it within surveyWait is as of when it came to it last.
func (v *Volume) Stats() *VolumeStats {
	v.mu.Lock()
	s := &VolumeStats{GateStats: v.retired}
	past, trunks := v.past, v.trunks
	v.mu.Unlock()
	now := surveyed(trunks, &s.GateStats)
	s.Reconnects, s.Disconnects = past.backs+now.backs, past.downs+now.downs
	s.Unflushed, s.Losses, s.LossesTold = v.ledger.unflushed(), v.ledger.losses.Load(), v.ledger.failed.Load()
	return s
}

// Report is what there is to know about a store before it is used.
type Report struct {
	Info  Info
	State State
	// Notes say what an operator should think of: one sentence each.
	Notes []string
}

// Check asks the store of a volume what it is and can do.
func (v *Volume) Check(ctx context.Context) (Report, error) {
	if _, err := v.Refresh(ctx); err != nil {
		return Report{State: v.store.State()}, err
	}
	r := Report{Info: v.Info(), State: v.store.State()}
	if why := r.State.Why; why != nil {
		r.Notes = append(r.Notes, "Something is wrong with it: "+why.Error()+".")
	}
	r.note(v.options.ReadOnly, v.Policy())
	return r, nil
}

func (r *Report) note(readOnly bool, p Policy) {
	i := &r.Info
	for _, n := range [...]struct {
		holds bool
		text  string
	}{
		{i.Size == 0, "It is empty: a guest will find no disk in it."},
		{!i.Flush && !readOnly, "It knows no flush: what it acknowledges is stable, or is lost when it dies without anybody knowing."},
		{i.Flush && !i.FUA && p.Durability == DurabilityFUA, "It knows no FUA: writes are made durable by a flush behind them, which is slower."},
		{i.Flush && p.Durability == DurabilityFlush && !readOnly, "Its cache may lose writes when it dies: then the guest's next flush fails; durability: fua prevents that."},
		{i.Lanes == 1, "It serves one connection: all queues of the volume must be on one worker."},
		{!i.Discard && !readOnly, "It cannot discard: space that the guest gives back stays taken."},
		{p.OnError == Wait && p.Timeout == 0, "Requests wait for it for ever: on-error: fail, or a timeout, bounds that."},
	} {
		if n.holds {
			r.Notes = append(r.Notes, n.text)
		}
	}
}

// notes carry what happens on a worker to the log, which may block, and so cannot be written there.
type notes struct {
	log   *slog.Logger
	queue chan note
	stop  chan struct{}
	done  sync.WaitGroup
}

type note struct {
	what   noteKind
	worker int
	err    error
	n      uint64
}

type noteKind uint8

const (
	noteUp noteKind = iota
	noteDown
	noteLoss
	noteSize
	noteRefused
	noteFence
	noteUnended
	noteUntold
	noteLacks
)

func (n *notes) open(log *slog.Logger, volume string) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n.log, n.queue, n.stop = log.With("volume", volume), make(chan note, 64), make(chan struct{})
	n.done.Go(func() {
		for {
			select {
			case x := <-n.queue:
				n.write(x)
			case <-n.stop:
				n.drain()
				return
			}
		}
	})
}

// note is for any goroutine. If there is more to tell than can be written, the rest is not.
func (v *Volume) note(what noteKind, worker int, err error, n uint64) {
	select {
	case v.notes.queue <- note{what, worker, err, n}:
	default:
	}
}

func (n *notes) write(x note) {
	switch x.what {
	case noteUp:
		n.log.Info("the store is back", "worker", x.worker)
	case noteDown:
		n.log.Warn("the store went away", "worker", x.worker, "why", x.err)
	case noteLoss:
		n.log.Error("the store came back and may have lost writes that were acknowledged and not flushed: flushes fail until the guest was told",
			"worker", x.worker, "writes", x.n)
	case noteSize:
		n.log.Info("the store has another size", "bytes", x.n)
	case noteLacks:
		n.log.Warn("the store cannot do any more what the guest was told it can: what has no other way is answered as unsupported", "cannot", fmt.Sprint(x.err))
	case noteFence:
		n.log.Info("a process before this one was killed with writes under way, which the store may still carry out: writes wait until that is over",
			"for", time.Duration(x.n).Round(time.Millisecond))
	case noteUnended:
		n.log.Info("writes of a volume that was here before may not have ended: writes wait until that is over", "for", time.Duration(x.n).Round(time.Millisecond))
	case noteUntold:
		n.log.Warn("if this process is killed the next one does not wait for what it had under way", "why", fmt.Sprint(x.err))
	case noteRefused:
		n.log.Error("the store has changed into what cannot be used; the volume stays as it was", "why", fmt.Sprint(x.err))
	}
}

// drain writes what is left.
func (n *notes) drain() {
	for {
		select {
		case x := <-n.queue:
			n.write(x)
		default:
			return
		}
	}
}

func (n *notes) close() {
	close(n.stop)
	n.done.Wait()
}
