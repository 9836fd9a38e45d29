package store_test

import (
	"fmt"
	"testing"

	"ukai/node/store"
	"ukai/node/store/storetest"
)

// dirMachine is a machine with a real store. It cannot lose its page cache, but it can tell the store that it has.
type dirMachine struct {
	cfg  store.Config
	boot int
}

func newDirMachine(t testing.TB) *dirMachine {
	return &dirMachine{cfg: store.Config{Dir: t.TempDir(), ReserveBytes: -1}}
}

func (m *dirMachine) Open(t testing.TB) store.Backend {
	m.cfg.BootID = fmt.Sprint(m.boot)
	s, err := store.Open(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (m *dirMachine) Kill(_ testing.TB, b store.Backend) { b.(*store.Store).Abandon() }
func (m *dirMachine) Reboot(testing.TB)                  { m.boot++ }

func (m *dirMachine) CutPower(t testing.TB, b store.Backend) bool {
	m.Kill(t, b)
	m.Reboot(t)
	return true
}

// memMachine is a machine that exists in memory only.
type memMachine struct {
	mem *store.Mem
	up  bool
}

func (m *memMachine) Open(testing.TB) store.Backend {
	if !m.up {
		m.mem.Restart()
	}
	m.up = false
	return m.mem.Store()
}

func (m *memMachine) Kill(testing.TB, store.Backend) {}
func (m *memMachine) Reboot(testing.TB)              { m.mem.Crash(); m.up = true }

func (m *memMachine) CutPower(testing.TB, store.Backend) bool {
	m.mem.Crash()
	m.up = true
	return false
}

func TestStoreKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Machine { return newDirMachine(t) })
}

func TestMemKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Machine {
		return &memMachine{mem: store.NewMem(store.MemConfig{}), up: true}
	})
}
