package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/store"
)

var errIO = fmt.Errorf("bad sector: %w", syscall.EIO)

// faults is what a Mem's Fault asks; a test arms it.
type faults struct {
	f atomic.Pointer[func(store.Op) error]
}

func (f *faults) arm(fault func(store.Op) error) { f.f.Store(&fault) }
func (f *faults) disarm()                        { f.f.Store(nil) }

func (f *faults) ask(op store.Op) error {
	if fault := f.f.Load(); fault != nil {
		return (*fault)(op)
	}
	return nil
}

func failing(kind store.OpKind, err error) func(store.Op) error {
	return func(op store.Op) error {
		if op.Kind == kind {
			return err
		}
		return nil
	}
}

const replicaBytes = 64 << 20

// newFaulty returns a Mem with one open replica, and its faults.
func newFaulty(t *testing.T, cfg store.MemConfig) (*store.Mem, ukai.DiskID, store.Replica, *faults) {
	f := new(faults)
	cfg.Fault = f.ask
	m := store.NewMem(cfg)
	disk := ukai.NewDiskID()
	must(t, m.Create(context.Background(), disk, 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}))
	r, err := m.OpenReplica(disk, 1)
	must(t, err)
	return m, disk, r, f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, err, sentinel error) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Errorf("error %v, want one that is %q", err, sentinel)
	}
}

func TestFailedSyncBreaksForEver(t *testing.T) {
	m, disk, r, f := newFaulty(t, store.MemConfig{})
	ctx := context.Background()
	must(t, m.Create(ctx, disk, 2, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}))
	must(t, r.Raise(ctx, 0, 0, ukai.BlockStamp{Epoch: 1}))
	must(t, r.WriteAt([]byte("data"), 0))
	syncs := 0
	f.arm(func(op store.Op) error {
		if op.Kind == store.OpSync {
			if syncs++; syncs == 1 {
				return errIO // the second would succeed: it may not be tried
			}
		}
		return nil
	})
	err := r.Sync(ctx)
	want(t, err, ukai.ErrMedia)
	if !strings.Contains(err.Error(), "0.img") || !strings.Contains(err.Error(), disk.String()) {
		t.Errorf("%q does not name the file", err)
	}
	p := make([]byte, 4)
	for name, err := range map[string]error{
		"Sync": r.Sync(ctx), "WriteAt": r.WriteAt(p, 0), "ReadAt": r.ReadAt(p, 0), "Discard": r.Discard(0, 4), "SetFence": r.SetFence(ctx, 1),
		"Raise": r.Raise(ctx, 0, 0, ukai.BlockStamp{Epoch: 1}), "MarkClean": r.MarkClean(ctx), "SetStable": r.SetStable(ukai.BlockStamp{}, true),
		"Resize": r.Resize(ctx, 2*replicaBytes),
	} {
		if !errors.Is(err, ukai.ErrMedia) {
			t.Errorf("%s on a broken replica = %v, want ErrMedia", name, err)
		}
	}
	if syncs != 1 {
		t.Errorf("fdatasync was tried %d times", syncs)
	}
	if info := m.Replicas()[0]; info.Broken == "" {
		t.Error("Replicas does not show what broke it")
	}
	must(t, r.Close())
	f.disarm()
	m.Restart()
	_, err = m.OpenReplica(disk, 1)
	want(t, err, ukai.ErrMedia)
	if info := m.Replicas()[0]; !strings.Contains(info.Broken, "bad sector") {
		t.Errorf("after a restart it is broken by %q", info.Broken)
	}
	other, err := m.OpenReplica(disk, 2)
	must(t, err)
	must(t, other.WriteAt(p, 0))
	must(t, m.Remove(ctx, disk, 1))
	must(t, m.Close())
}

func TestFailedWriteBreaksButNotForLackOfSpace(t *testing.T) {
	for name, change := range map[string]func(store.Replica) error{
		"write":   func(r store.Replica) error { return r.WriteAt(make([]byte, 512), 0) },
		"discard": func(r store.Replica) error { return r.Discard(0, 512) },
		"zero":    func(r store.Replica) error { return r.Zero(0, 512) },
	} {
		t.Run(name, func(t *testing.T) {
			kind := store.OpPunch
			if name == "write" {
				kind = store.OpWrite
			}
			m, _, r, f := newFaulty(t, store.MemConfig{})
			f.arm(failing(kind, syscall.ENOSPC))
			want(t, change(r), ukai.ErrNoSpace)
			f.disarm()
			must(t, change(r))
			f.arm(failing(kind, syscall.EROFS))
			want(t, change(r), ukai.ErrMedia)
			f.disarm()
			want(t, change(r), ukai.ErrMedia)
			must(t, m.Close())
		})
	}
}

// A file system has a largest file: a disk that shall grow beyond it keeps what it has, on every replica.
func TestSizeThatTheFileSystemCannotHoldBreaksNothing(t *testing.T) {
	m, disk, r, f := newFaulty(t, store.MemConfig{})
	must(t, r.WriteAt([]byte("data"), 0))
	f.arm(failing(store.OpTruncate, syscall.EFBIG))
	want(t, r.Resize(context.Background(), 2*replicaBytes), ukai.ErrUnsupported)
	f.disarm()
	if r.Size() != replicaBytes {
		t.Errorf("the replica has %d bytes", r.Size())
	}
	must(t, r.WriteAt([]byte("more"), 4))
	must(t, r.Close())
	m.Restart()
	r, err := m.OpenReplica(disk, 1)
	must(t, err)
	p := make([]byte, 8)
	must(t, r.ReadAt(p, 0))
	if string(p) != "datamore" {
		t.Errorf("read %q", p)
	}
	must(t, m.Close())
}

// The stamps of a disk of 16 TiB are 4 million keys. Each batch of deletions may cost a scan of its own only if that scan does not
// walk over what was deleted before.
func TestRemoveScansStampsOnce(t *testing.T) {
	m, disk, r, f := newFaulty(t, store.MemConfig{})
	ctx := context.Background()
	must(t, r.Resize(ctx, 3*store.MaxBatchKeys<<20))
	must(t, r.Raise(ctx, 0, 3*store.MaxBatchKeys-1, ukai.BlockStamp{Epoch: 1}))
	must(t, r.Close())
	gets, puts := 0, 0
	f.arm(func(op store.Op) error {
		switch op.Kind {
		case store.OpGet:
			gets++
		case store.OpPut:
			puts++
		}
		return nil
	})
	must(t, m.Remove(ctx, disk, 1))
	if gets != 1 || puts != 5 { // the header twice, the stamps in three batches
		t.Errorf("removal scanned %d times and wrote %d batches", gets, puts)
	}
	f.disarm()
	must(t, m.Create(ctx, disk, 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}))
	r, err := m.OpenReplica(disk, 1)
	must(t, err)
	if left := r.Newer(ukai.BlockStamp{}); len(left) > 0 {
		t.Errorf("%d stamps are left", len(left))
	}
	must(t, m.Close())
}

func TestFailedReadBreaksNothing(t *testing.T) {
	m, _, r, f := newFaulty(t, store.MemConfig{})
	p := make([]byte, 512)
	f.arm(failing(store.OpRead, errIO))
	want(t, r.ReadAt(p, 0), ukai.ErrMedia)
	f.disarm()
	must(t, r.ReadAt(p, 0))
	must(t, r.WriteAt(p, 0))
	must(t, m.Close())
}

func TestFailedRaiseRaisesNothing(t *testing.T) {
	for _, kind := range []store.OpKind{store.OpPut, store.OpSyncKeys} {
		m, _, r, f := newFaulty(t, store.MemConfig{})
		ctx := context.Background()
		must(t, r.Raise(ctx, 0, 9, ukai.BlockStamp{Epoch: 1}))
		must(t, r.SetFence(ctx, 1))
		f.arm(failing(kind, errIO))
		want(t, r.Raise(ctx, 5, 15, ukai.BlockStamp{Epoch: 2}), ukai.ErrMedia)
		for i := range ukai.Index(16) {
			if s, has := r.Stamp(i); has != (i < 10) || s.Epoch > 1 {
				t.Errorf("op %d: stamp of block %d after the failure: %v, %v", kind, i, s, has)
			}
		}
		f.disarm()
		// The database may hold anything now: the store is no good any more.
		want(t, r.Raise(ctx, 5, 15, ukai.BlockStamp{Epoch: 2}), ukai.ErrMedia)
		want(t, r.SetFence(ctx, 2), ukai.ErrMedia)
		want(t, m.Put(ctx, false, store.KV{K: "k", V: []byte("v")}), ukai.ErrMedia)
		if r.Header().Fence != 1 {
			t.Errorf("fence %v after a failed SetFence", r.Header().Fence)
		}
		_ = m.Close() // fails, as it should: the replica could not be marked
		m.Restart()
		must(t, m.Close())
	}
}

func TestSpaceReserve(t *testing.T) {
	const capacity, reserve = 16 << 20, 4 << 20
	m, _, r, _ := newFaulty(t, store.MemConfig{Capacity: capacity, ReserveBytes: reserve})
	testSpaceReserve(t, m, r)
}

// testSpaceReserve fills a store up to its reserve and finds out what still goes then.
func testSpaceReserve(t *testing.T, b store.Backend, r store.Replica) {
	ctx := context.Background()
	block := bytes.Repeat([]byte{1}, 256<<10)
	var off int64
	var err error
	for ; off < replicaBytes; off += int64(len(block)) {
		if err = r.WriteAt(block, off); err != nil {
			break
		}
	}
	want(t, err, ukai.ErrNoSpace)
	space, spaceErr := b.Space()
	must(t, spaceErr)
	if space.Free < space.Reserve-1<<20 || space.Free > space.Reserve+1<<20 {
		t.Errorf("stopped with %d bytes free, reserve %d", space.Free, space.Reserve)
	}
	for _, part := range []string{"reserve", "free", "MiB", "move"} {
		if err != nil && !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	for o := int64(0); o < off; o += int64(len(block)) {
		must(t, r.WriteAt(block, o)) // allocated already
	}
	want(t, r.WriteAt(block, off-4096), ukai.ErrNoSpace) // only in part
	must(t, r.Raise(ctx, 0, 0, ukai.BlockStamp{Epoch: 9}))
	must(t, r.Sync(ctx))
	want(t, b.Create(ctx, ukai.NewDiskID(), 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}), ukai.ErrNoSpace)
	must(t, r.Discard(0, 2<<20))
	must(t, r.WriteAt(block, off)) // there is space again
}

func TestSyncsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, r, f := newFaulty(t, store.MemConfig{})
		ctx := context.Background()
		must(t, r.WriteAt([]byte("first"), 0))
		syncs, release := 0, make(chan struct{})
		f.arm(func(op store.Op) error {
			if op.Kind == store.OpSync {
				if syncs++; syncs == 1 {
					<-release
				}
			}
			return nil
		})
		var g sync.WaitGroup
		g.Go(func() { _ = r.Sync(ctx) })
		synctest.Wait()
		for i := range 10 { // while the first is under way
			g.Go(func() {
				if err := errors.Join(r.WriteAt([]byte("more"), int64(i)*512), r.Sync(ctx)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(release)
		g.Wait()
		if syncs != 2 {
			t.Errorf("%d fdatasyncs for 11 callers in two groups", syncs)
		}
		must(t, r.Sync(ctx))
		if syncs != 2 {
			t.Error("a Sync with nothing written did one")
		}
		must(t, m.Close())
	})
}

func TestRaisesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, r, f := newFaulty(t, store.MemConfig{})
		puts, syncs, release := 0, 0, make(chan struct{})
		f.arm(func(op store.Op) error {
			switch op.Kind {
			case store.OpPut:
				puts++
			case store.OpSyncKeys:
				if syncs++; syncs == 1 {
					<-release
				}
			}
			return nil
		})
		var g sync.WaitGroup
		raise := func(from, to ukai.Index, check uint32) {
			g.Go(func() {
				if err := r.Raise(context.Background(), from, to, ukai.BlockStamp{Epoch: 1, Check: check}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		raise(0, 5, 1)
		raise(2, 3, 1) // the round under way does that
		raise(4, 8, 2)
		raise(4, 8, 1)
		raise(9, 9, 3)
		close(release)
		g.Wait()
		if puts != 2 || syncs != 2 {
			t.Errorf("%d puts and %d syncs for two rounds", puts, syncs)
		}
		if s, _ := r.Stamp(4); s.Check != 2 {
			t.Errorf("stamp %v", s)
		}
		must(t, m.Close())
	})
}

// A disk that hangs may hold its callers only as long as their ctx.
func TestHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, r, f := newFaulty(t, store.MemConfig{})
		must(t, r.WriteAt([]byte("data"), 0))
		release := make(chan struct{})
		f.arm(func(op store.Op) error {
			if op.Kind == store.OpSync || op.Kind == store.OpSyncKeys {
				<-release
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		want(t, r.Sync(ctx), context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		want(t, r.Raise(ctx, 0, 0, ukai.BlockStamp{Epoch: 1}), context.DeadlineExceeded)
		if _, has := r.Stamp(0); has {
			t.Error("the stamp counts as raised before it is durable")
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		want(t, m.Put(ctx, true, store.KV{K: "k", V: []byte("v")}), context.DeadlineExceeded)
		close(release)
		synctest.Wait()
		if _, has := r.Stamp(0); !has {
			t.Error("the raise did not go on without its caller")
		}
		must(t, m.Close())
	})
}

func TestOldLifeIsDead(t *testing.T) {
	m, disk, r, _ := newFaulty(t, store.MemConfig{})
	old := m.Store()
	must(t, r.WriteAt([]byte("data"), 0))
	for _, restart := range []func(){m.Restart, m.Crash} {
		restart()
		want(t, r.WriteAt([]byte("late"), 0), ukai.ErrClosed)
		want(t, old.Put(context.Background(), true, store.KV{K: "k", V: []byte("v")}), ukai.ErrClosed)
		_ = old.Close() // of the old life: may not touch the new one
		n, err := m.OpenReplica(disk, 1)
		must(t, err)
		must(t, n.WriteAt([]byte("new "), 0))
		r, old = n, m.Store()
	}
	must(t, m.Close())
}

func TestMemCostsOnlyWhatIsWritten(t *testing.T) {
	m := store.NewMem(store.MemConfig{})
	disk := ukai.NewDiskID()
	ctx := context.Background()
	must(t, m.Create(ctx, disk, 1, store.ReplicaConfig{Size: 16 << 40, BlockSize: 4 << 20}))
	r, err := m.OpenReplica(disk, 1)
	must(t, err)
	must(t, r.WriteAt([]byte("x"), 16<<40-1))
	must(t, r.Discard(0, 15<<40))
	if n, err := r.NextData(0); n != 16<<40-4096 || err != nil {
		t.Errorf("NextData = %d, %v", n, err)
	}
	if n := r.AllocatedBytes(); n != 4096 {
		t.Errorf("%d bytes allocated for one byte", n)
	}
	must(t, r.Discard(0, 16<<40))
	space, err := m.Space()
	must(t, err)
	if space.Free != space.Total {
		t.Errorf("space %+v after everything was discarded", space)
	}
	must(t, m.Close())
}

// TestCrashAtEveryStep lets the power fail at each operation on the disk in turn, while a replica is made, used and
// removed, and looks at what is left.
func TestCrashAtEveryStep(t *testing.T) {
	const seeds = 3
	for step := 1; ; step++ {
		finished := false
		for seed := range uint64(seeds) {
			finished = crashAtStep(t, step, seed)
		}
		if finished {
			if step < 15 {
				t.Errorf("the script took %d steps only", step)
			}
			return
		}
	}
}

func crashAtStep(t *testing.T, step int, seed uint64) (finished bool) {
	f := new(faults)
	m := store.NewMem(store.MemConfig{Fault: f.ask})
	ctx, disk := context.Background(), ukai.NewDiskID()
	var n atomic.Int64
	f.arm(func(store.Op) error {
		if n.Add(1) >= int64(step) {
			return errIO
		}
		return nil
	})
	var created, fenced, raised, synced, removing bool
	old, data := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	err := func() error {
		if err := m.Create(ctx, disk, 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}); err != nil {
			return err
		}
		created = true
		r, err := m.OpenReplica(disk, 1)
		if err != nil {
			return err
		}
		if err := r.SetFence(ctx, 7); err != nil {
			return err
		}
		fenced = true
		if err := r.Raise(ctx, 0, 40, ukai.BlockStamp{Epoch: 7, Check: 1}); err != nil {
			return err
		}
		raised = true
		if err := errors.Join(r.WriteAt(old, 0), r.Sync(ctx)); err != nil {
			return err
		}
		synced = true
		if err := errors.Join(r.WriteAt(data, 0), r.Close()); err != nil {
			return err
		}
		removing = true
		return m.Remove(ctx, disk, 1)
	}()
	f.disarm()
	m.CrashKeeping(rand.New(rand.NewPCG(seed, uint64(step))))
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("step %d, seed %d: %s", step, seed, fmt.Sprintf(format, args...))
	}
	if o := m.Orphans(); len(o) != 0 {
		bad("orphans %q", o)
	}
	r, openErr := m.OpenReplica(disk, 1)
	switch {
	case errors.Is(openErr, ukai.ErrMedia):
		// Broken, and known to be.
	case errors.Is(openErr, ukai.ErrNotFound):
		if created && !removing {
			bad("the replica is gone")
		}
		if n := len(m.Replicas()); n != 0 {
			bad("%d replicas are listed", n)
		}
		must(t, m.Create(ctx, disk, 1, store.ReplicaConfig{Size: replicaBytes, BlockSize: 1 << 20}))
	case openErr != nil:
		bad("open: %v", openErr)
	default:
		h := r.Header()
		if fenced && h.Fence != 7 {
			bad("fence %v", h.Fence)
		}
		if s, has := r.Stamp(40); raised && (!has || s.Epoch != 7) {
			bad("stamp %v, %v", s, has)
		}
		got := make([]byte, 4096)
		must(t, r.ReadAt(got, 0))
		for s := 0; s < len(got); s += ukai.SectorSize {
			sector := got[s : s+ukai.SectorSize]
			if bytes.Equal(sector, data[:ukai.SectorSize]) || bytes.Equal(sector, old[:ukai.SectorSize]) {
				continue
			}
			if synced || !bytes.Equal(sector, make([]byte, ukai.SectorSize)) {
				bad("sector %d holds %x...", s/ukai.SectorSize, sector[:8])
			}
		}
		if _, has := r.Stamp(0); !has && !bytes.Equal(got, make([]byte, 4096)) {
			bad("data without a stamp")
		}
	}
	must(t, m.Close())
	return err == nil
}

// A power cut at any step of an adoption leaves the old replica or the new one, whole, and never both.
func TestCrashAtEveryStepOfAnAdoption(t *testing.T) {
	const blocks = store.MaxBatchKeys // its stamps move in several batches
	for step := 1; ; step++ {
		f := new(faults)
		m := store.NewMem(store.MemConfig{Fault: f.ask})
		ctx, disk := context.Background(), ukai.NewDiskID()
		must(t, m.Create(ctx, disk, 1, store.ReplicaConfig{Size: blocks << 20, BlockSize: 1 << 20}))
		r, err := m.OpenReplica(disk, 1)
		must(t, err)
		data := bytes.Repeat([]byte{7}, 4096)
		must(t, errors.Join(r.SetFence(ctx, 7), r.Raise(ctx, 0, blocks-1, ukai.BlockStamp{Epoch: 7, Check: 1}), r.WriteAt(data, 5<<20), r.Sync(ctx),
			r.SetState(ctx, store.StateRetired), r.Close()))
		var n atomic.Int64
		f.arm(func(store.Op) error {
			if n.Add(1) >= int64(step) {
				return errIO
			}
			return nil
		})
		err = m.Adopt(ctx, disk, 1, 2)
		f.disarm()
		m.CrashKeeping(rand.New(rand.NewPCG(1, uint64(step))))
		all := m.Replicas()
		if o := m.Orphans(); len(all) != 1 || len(o) != 0 {
			t.Fatalf("step %d: replicas %+v, orphans %q", step, all, o)
		}
		if h := all[0].Header; all[0].Replica == 2 && (h.State != store.StateNew || !h.Adopted || h.Fence != 0) || all[0].Replica == 1 && (err == nil || h.State != store.StateRetired) {
			t.Errorf("step %d: after %v: %+v", step, err, all[0])
		}
		r, openErr := m.OpenReplica(disk, all[0].Replica)
		must(t, openErr)
		got := make([]byte, len(data))
		must(t, r.ReadAt(got, 5<<20))
		if !bytes.Equal(got, data) || len(r.Newer(ukai.BlockStamp{})) != blocks {
			t.Errorf("step %d: % x..., %d stamps", step, got[:8], len(r.Newer(ukai.BlockStamp{})))
		}
		must(t, m.Close())
		if err == nil {
			if step < 8 {
				t.Errorf("the adoption took %d steps only", step)
			}
			return
		}
	}
}
