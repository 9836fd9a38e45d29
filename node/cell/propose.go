package cell

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"ukai"
	"ukai/crdt"
)

// Defaults of Options.
const (
	DefaultPerTryTimeout = 2 * time.Second
	DefaultAttempts      = 12

	// maxUnanswered bounds the rounds in which too few arbiters answer. Waiting for them longer is the caller's choice.
	maxUnanswered = 2

	minBackoff = 10 * time.Millisecond
	maxBackoff = 200 * time.Millisecond
)

// Sender carries a request to an arbiter and brings its reply. To the proposer's own node it is a call of the local
// acceptor. Send returns soon after ctx ends; until then it may try as often as it likes, since a request that arrives
// twice does no harm.
type Sender interface {
	Send(ctx context.Context, to ukai.NodeID, req Request) (Reply, error)
}

// Options say how patient Propose is. The zero value has useful defaults.
type Options struct {
	// RetryBackoff returns the pause before the next round, the first being 1, after a duel with another proposer or a
	// round that too few answered. It must be random, or two proposers may duel for ever. Default: 10 to 200 ms.
	RetryBackoff func(attempt int) time.Duration
	// PerTryTimeout bounds each Send. Default: DefaultPerTryTimeout.
	PerTryTimeout time.Duration
	// Attempts bounds the rounds. Default: DefaultAttempts.
	Attempts int
	// Counter returns where ballots begin. Default: the clock in milliseconds, so that a later attempt mostly has the
	// higher ballot at once; a wrong clock costs one round trip.
	Counter func() uint64
	// Go starts a goroutine. Slow arbiters are not waited for, so requests may outlive Propose, by at most
	// PerTryTimeout; an owner that must join them passes the Go method of its sync.WaitGroup. Default: a go statement.
	Go func(func())
}

func (o Options) withDefaults() Options {
	if o.RetryBackoff == nil {
		o.RetryBackoff = func(int) time.Duration { return minBackoff + rand.N(maxBackoff-minBackoff) }
	}
	if o.PerTryTimeout <= 0 {
		o.PerTryTimeout = DefaultPerTryTimeout
	}
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	if o.Counter == nil {
		o.Counter = func() uint64 { return uint64(max(0, time.Now().UnixMilli())) }
	}
	if o.Go == nil {
		o.Go = func(f func()) { go f() }
	}
	return o
}

// Propose has node self carry a change through the arbiters of a disk's record, and returns the committed record with
// the change in it. It returns as soon as a majority has decided. Errors match
//
//   - ukai.ErrRejected: the guard does not hold. The record returned is the committed one that was found.
//   - ukai.ErrInDoubt: the change may or may not be, or yet become, part of the committed record. Propose the same change
//     again to settle it, or read with Identity and ask Done.
//   - ukai.ErrNoQuorum: the change did not take effect and never will; the text names the arbiters that did not answer.
//
// If ctx ended, they match ctx's error too.
func Propose(ctx context.Context, s Sender, self ukai.NodeID, at At, change Change, o Options) (crdt.Record, error) {
	return drive(ctx, s, NewProposer(self, at, change), fmt.Sprintf("disk %v: %v", at.Disk, change), o.withDefaults())
}

// Create makes the nodes in rec.Arbiters the arbiters of a new disk and returns once a majority has rec. All are asked,
// not only a majority. After ukai.ErrNoQuorum the same rec may be tried again, or forgotten.
func Create(ctx context.Context, s Sender, self ukai.NodeID, rec crdt.Record, o Options) (crdt.Record, error) {
	if err := CheckNew(rec); err != nil {
		return crdt.Record{}, err
	}
	return drive(ctx, s, newInit(self, rec.Clone()), fmt.Sprintf("disk %v: create", rec.Disk), o.withDefaults())
}

// Force carries a forced takeover through its new arbiters: rec is what Takeover.From returned. It is for an operator
// who has made sure that the old arbiters are gone, or has accepted that the disk may split in two.
func Force(ctx context.Context, s Sender, self ukai.NodeID, rec crdt.Record, o Options) (crdt.Record, error) {
	if fork(&rec) == (ukai.Nonce{}) {
		return crdt.Record{}, fmt.Errorf("disk %v: forced takeover: %w: the record has no lineage of its own", rec.Disk, ukai.ErrInvalid)
	}
	if _, err := rec.Encode(); err != nil {
		return crdt.Record{}, fmt.Errorf("forced takeover: %w", err)
	}
	return drive(ctx, s, newInit(self, rec.Clone()), fmt.Sprintf("disk %v: forced takeover", rec.Disk), o.withDefaults())
}

// response is what became of one message.
type response struct {
	to  Message
	rep Reply
	err error
}

// drive runs a proposer until it has decided, patience is over, or ctx ends.
func drive(ctx context.Context, s Sender, p *Proposer, what string, o Options) (crdt.Record, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	responses, returned := make(chan response), make(chan struct{})
	defer close(returned)
	send := func(messages []Message) {
		for _, m := range messages {
			o.Go(func() {
				// What changes an arbiter is delivered even when the majority was quicker or the caller has gone:
				// an arbiter that lags helps nobody.
				parent := ctx
				if m.Request.Kind != Prepare {
					parent = context.WithoutCancel(ctx)
				}
				ctx, cancel := context.WithTimeout(parent, o.PerTryTimeout)
				defer cancel()
				rep, err := s.Send(ctx, m.To, m.Request)
				select {
				case responses <- response{m, rep, err}:
				case <-returned:
				}
			})
		}
	}
	pause := time.NewTimer(0)
	pause.Stop()
	defer pause.Stop()

	rounds, unanswered := 1, 0
	waiting := false // for the pause to end
	send(p.Start(o.Counter()))
	for {
		select {
		case r := <-responses:
			if r.err != nil {
				p.Fail(r.to, r.err)
			} else {
				send(p.Step(r.to.To, r.rep))
			}
		case <-pause.C:
			waiting = false
			rounds++
			send(p.Retry())
		case <-ctx.Done():
			return crdt.Record{}, undecided(what, p, context.Cause(ctx))
		}
		switch out := p.Outcome(); out.State {
		case Committed:
			return out.Record, nil
		case Rejected:
			return out.Record, fmt.Errorf("disk %v: %w", out.Record.Disk, out.Err)
		case Pending:
			// A late reply may have saved a round that was given up.
			pause.Stop()
			waiting = false
		case Duel, Stuck:
			if waiting {
				break
			}
			if out.State == Stuck {
				unanswered++
			}
			if rounds >= o.Attempts || unanswered >= maxUnanswered {
				return crdt.Record{}, undecided(what, p, nil)
			}
			waiting = true
			pause.Reset(o.RetryBackoff(rounds))
		}
	}
}

// undecided returns the error of a proposer that is given up.
func undecided(what string, p *Proposer, cause error) error {
	kind := ukai.ErrNoQuorum
	if p.Outcome().InDoubt {
		kind = ukai.ErrInDoubt
	}
	missing := p.Missing()
	n := len(p.at.Arbiters)
	text := fmt.Sprintf("%d of %d arbiters answered, %d are needed", n-len(missing), n, p.quorum(n))
	for _, why := range missing {
		text += "; " + why.Error()
	}
	// The arbiters' errors are told, not wrapped: that one of them could not be reached is not what went wrong here.
	if cause != nil {
		return fmt.Errorf("%s: %w: %w: %s", what, kind, cause, text)
	}
	return fmt.Errorf("%s: %w: %s", what, kind, text)
}
