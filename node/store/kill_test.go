package store_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"testing/synctest"

	"ukai"
	"ukai/node/store"
)

// childDir, set in the environment, makes the test binary the process that gets killed.
const childDir = "UKAI_STORE_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Println("child:", child(dir))
		os.Exit(1) // it is to be killed; whoever gets here says why
	}
	os.Exit(m.Run())
}

const (
	killBlocks  = 64
	killWriters = 4
)

var killDisk = ukai.DiskID{1}

// child writes for ever, and reports what was promised to it: "<writer> <serial>" once the stamp, the data and a
// durable value with that serial are written. Each writer has blocks of its own.
func child(dir string) error {
	s, err := store.Open(store.Config{Dir: dir, ReserveBytes: -1})
	if err != nil {
		return err
	}
	ctx := context.Background()
	err = s.Create(ctx, killDisk, 1, store.ReplicaConfig{Size: killBlocks << 20, BlockSize: 1 << 20})
	if err != nil && !errors.Is(err, ukai.ErrExists) {
		return err
	}
	r, err := s.OpenReplica(killDisk, 1)
	if err != nil {
		return err
	}
	failed := make(chan error)
	var out sync.Mutex
	for w := range killWriters {
		go func() {
			start := uint64(1)
			if st, has := r.Stamp(ukai.Index(w)); has {
				start = uint64(st.Epoch) + 1
			}
			for serial := start; ; serial++ {
				index := ukai.Index(w + killWriters*int(serial%(killBlocks/killWriters)))
				err := errors.Join(
					r.Raise(ctx, ukai.Index(w), ukai.Index(w), ukai.BlockStamp{Epoch: ukai.Epoch(serial)}),
					r.Raise(ctx, index, index, ukai.BlockStamp{Epoch: ukai.Epoch(serial)}),
					r.WriteAt(binary.BigEndian.AppendUint64(nil, serial), int64(index)<<20),
					s.Put(ctx, serial%2 == 0, store.KV{K: fmt.Sprint("w", w), V: binary.BigEndian.AppendUint64(nil, serial)}))
				if serial%16 == 0 {
					err = errors.Join(err, r.Sync(ctx), r.SetStable(ukai.BlockStamp{Epoch: ukai.Epoch(serial)}, false))
				}
				if err != nil {
					failed <- err
					return
				}
				out.Lock()
				fmt.Println(w, serial)
				out.Unlock()
			}
		}()
	}
	return <-failed
}

// TestKilledInTheMiddle kills a process that writes, again and again, and looks at what it left.
func TestKilledInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	for life := range 3 {
		promised := runAndKill(t, dir, 60+37*life)
		s, err := store.Open(store.Config{Dir: dir, ReserveBytes: -1})
		must(t, err)
		if infos := s.Replicas(); len(infos) != 1 || len(s.Orphans()) != 0 {
			t.Fatalf("replicas %+v, orphans %q", infos, s.Orphans())
		}
		r, err := s.OpenReplica(killDisk, 1)
		must(t, err)
		if h := r.Header(); h.Unclean || h.Incarnation != s.Incarnation() {
			t.Errorf("life %d: header %+v", life, h)
		}
		for i := range ukai.Index(killBlocks) {
			p := make([]byte, 8)
			must(t, r.ReadAt(p, int64(i)<<20))
			stamp, _ := r.Stamp(i)
			if data := binary.BigEndian.Uint64(p); uint64(stamp.Epoch) < data {
				t.Errorf("life %d, block %d: data of %d under stamp %v", life, i, data, stamp)
			}
		}
		for w, serial := range promised {
			index := ukai.Index(w + killWriters*int(serial%(killBlocks/killWriters)))
			p := make([]byte, 8)
			must(t, r.ReadAt(p, int64(index)<<20))
			if data := binary.BigEndian.Uint64(p); data < serial {
				t.Errorf("life %d, block %d: data of %d, but %d was written", life, index, data, serial)
			}
			v, err := s.Get(fmt.Sprint("w", w))
			must(t, err)
			if got := binary.BigEndian.Uint64(v); got < serial {
				t.Errorf("life %d: value %d, but %d was put", life, got, serial)
			}
		}
		s.Abandon() // not Close: the next life, too, finds what a killed one left
	}
}

// runAndKill runs a child until it has made some promises, kills it, and returns each writer's last.
func runAndKill(t *testing.T, dir string, promises int) map[int]uint64 {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	last := make(map[int]uint64)
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		var w int
		var serial uint64
		if _, err := fmt.Sscan(lines.Text(), &w, &serial); err != nil {
			_ = cmd.Process.Kill()
			t.Fatalf("child says %q", lines.Text())
		}
		last[w] = serial
		if n == promises {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // it was killed
	if len(last) == 0 {
		t.Fatal("the child made no promise")
	}
	return last
}

// A node in virtual time may have a real store, and none of its goroutines may be left.
func TestRealStoreInABubble(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		for range 2 {
			s, err := store.Open(store.Config{Dir: dir, ReserveBytes: -1})
			must(t, err)
			err = s.Create(ctx, killDisk, 1, store.ReplicaConfig{Size: killBlocks << 20, BlockSize: 1 << 20})
			if err != nil && !errors.Is(err, ukai.ErrExists) {
				t.Fatal(err)
			}
			r, err := s.OpenReplica(killDisk, 1)
			must(t, err)
			var g sync.WaitGroup
			for i := range ukai.Index(8) {
				g.Go(func() {
					if err := errors.Join(
						r.Raise(ctx, i, i, ukai.BlockStamp{Epoch: 1}),
						r.WriteAt([]byte("data"), int64(i)<<20),
						r.Sync(ctx),
						s.Put(ctx, true, store.KV{K: fmt.Sprint(i), V: []byte("v")}),
					); err != nil {
						t.Error(err)
					}
				})
			}
			g.Wait()
			must(t, s.Close())
		}
	})
}
