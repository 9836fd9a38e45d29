package store

import (
	"context"
	"fmt"

	"ukai"
)

// Adopt implements Backend. One durable batch makes the new replica known, with the name of the old one, and the old one unknown. What follows -
// the files get the new name, then the stamps - can be repeated, and is when the store is next opened.
func (s *Store) Adopt(ctx context.Context, disk ukai.DiskID, from, to ukai.ReplicaID) error {
	old, k := replicaKey{disk, from}, replicaKey{disk, to}
	if to == 0 {
		return fmt.Errorf("adopt %v: %w: the zero id names nothing", k, ukai.ErrInvalid)
	}
	was, err := s.take(ctx, old)
	if err != nil {
		return fmt.Errorf("adopt %w", err)
	}
	defer func() { <-was.turn }()
	e := newEntry()
	e.turn <- struct{}{} // nobody else has it yet
	defer func() { <-e.turn }()
	was.mu.Lock()
	h, headerErr, open := was.header, was.err, was.open != nil
	was.mu.Unlock()
	switch {
	case headerErr != nil:
		return fmt.Errorf("adopt %v: %w", old, headerErr)
	case open:
		return fmt.Errorf("adopt %v: %w: it is open", old, ukai.ErrLocked)
	case h.Broken != "":
		return fmt.Errorf("adopt %v: %w: broken since: %s", old, ukai.ErrMedia, h.Broken)
	case h.State != StateRetired:
		return fmt.Errorf("adopt %v: %w: it is %v, must be retired", old, ukai.ErrRejected, h.State)
	}
	if there, err := s.files.exists(k); err != nil {
		return mediaError(s.files.path(k, h.Head), err)
	} else if there {
		return fmt.Errorf("%s: %w: it was left by something else: move it away", s.files.path(k, h.Head), ukai.ErrExists)
	}
	s.mu.Lock()
	if s.replicas[k] != nil {
		s.mu.Unlock()
		return fmt.Errorf("adopt %v: %w", k, ukai.ErrExists)
	}
	s.replicas[k] = e
	s.mu.Unlock()

	// What was promised of the old one holds for nobody: no epoch has sealed the new one, and none of its blocks is known to be equal to any.
	h.State, h.From, h.Fence, h.Stable = stateAdopting, from, 0, ukai.BlockStamp{}
	e.mu.Lock()
	e.header = h
	e.mu.Unlock()
	v, err := encodeHeader(h)
	if err == nil {
		err = s.keys.put(context.WithoutCancel(ctx), true, true, []KV{{k.headerKey(), v}, {K: old.headerKey()}})
	}
	if err != nil {
		s.forget(k, e)
		return fmt.Errorf("adopt %v: %w", old, err)
	}
	s.forget(old, was)
	if err := s.finishAdopt(context.WithoutCancel(ctx), k, e); err != nil {
		return fmt.Errorf("adopt %v: %w: this is tried again at the next start", old, err)
	}
	return nil
}

// finishAdopt does what is left of an Adopt once its first batch is durable.
func (s *Store) finishAdopt(ctx context.Context, k replicaKey, e *entry) error {
	e.mu.Lock()
	h := e.header
	e.mu.Unlock()
	old := replicaKey{k.disk, h.From}
	if err := s.files.rename(old, k); err != nil {
		return mediaError("rename "+s.files.path(old, h.Head), err)
	}
	if err := s.keys.moveAll(ctx, old.stampsPrefix(), k.stampsPrefix()); err != nil {
		return err
	}
	h.State, h.From, h.Adopted = StateNew, 0, true
	v, err := encodeHeader(h)
	if err == nil {
		err = s.keys.put(ctx, true, true, []KV{{k.headerKey(), v}})
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.header = h
	e.mu.Unlock()
	return nil
}
