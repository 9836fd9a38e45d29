package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ukai"
	"ukai/node/admin"
)

// lines keeps what nodes log, each line once.
type lines struct {
	found chan map[string]bool // holds one
	at    string
}

func (l lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (l lines) WithGroup(string) slog.Handler                    { return l }
func (l lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	if l.at == "" {
		l.at = attrs[0].Value.String()
	}
	return l
}

func (l lines) Handle(_ context.Context, r slog.Record) error {
	text := l.at + ": " + r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.Value.String(); return true })
	found := <-l.found
	found[text] = true
	l.found <- found
	return nil
}

// has says whether a node logged a line with all of these words.
func (l lines) has(at string, words ...string) bool {
	found := <-l.found
	defer func() { l.found <- found }()
	for text := range found {
		if strings.HasPrefix(text, at+": ") && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			return true
		}
	}
	return false
}

func (m *Mesh) awaitRetired(at *Node, name string) (out admin.NodeRetired) {
	m.T.Helper()
	m.Await(name+" is retired", func() (err error) {
		out, err = at.RetireNode(context.Background(), name, admin.RetireNode{})
		return err
	})
	return out
}

func TestARetiredNodeIsReplacedAtOnceItsNameIsFreeAndItIsNotLetInAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := lines{found: make(chan map[string]bool, 1)}
		log.found <- map[string]bool{}
		m := New(t, 1)
		m.Log = log
		m.AddAll("t1:tokyo t2:tokyo t3:tokyo o1:osaka f1:fukuoka")
		defer m.Stop()
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		holding, err := locations(m.Nodes["t1"], "vm1")
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Fields(holding[1])[0] // t1 is everybody's seed
		old, at := m.Nodes[name], m.Nodes["t1"]
		if !slices.Contains(arbiters(t, at, "vm1"), name) {
			t.Fatalf("%s is not among the arbiters %v", name, arbiters(t, at, "vm1"))
		}
		for _, dry := range []bool{true, false} {
			if _, err := m.Nodes["o1"].RetireNode(ctx, name, admin.RetireNode{DryRun: dry}); !errors.Is(err, ukai.ErrRejected) || !strings.Contains(err.Error(), "evacuate "+name) {
				t.Fatalf("a node that is alive, dry run %t: %v", dry, err)
			}
		}
		old.Crash()
		began := time.Now()
		if out := m.awaitRetired(at, name); out.Replicas != 1 || out.Seats != 1 || len(out.Warnings) > 0 {
			t.Errorf("told: %+v", out)
		}
		others := []string{"t1 in sync", "t2 in sync", "t3 in sync"}
		others = slices.DeleteFunc(others, func(s string) bool { return strings.HasPrefix(s, name) })
		m.awaitLocations(at, "vm1", others...)
		m.Await("another arbiter", func() error {
			if got := arbiters(t, at, "vm1"); slices.Contains(got, name) || len(got) != 3 {
				return fmt.Errorf("arbiters %v", got)
			}
			return nil
		})
		if took := time.Since(began); took > 5*time.Minute {
			t.Errorf("what it had is made anew after %v only", took)
		}
		for _, n := range m.Order {
			if n.Node == nil {
				continue
			}
			m.Await("nothing speaks of it on "+n.Name, func() error {
				s, err := n.Status(ctx)
				if err == nil && slices.ContainsFunc(s.Nodes, func(x admin.Node) bool { return x.Name == name }) {
					err = errors.New("status shows it")
				}
				found, e := n.Doctor(ctx)
				if len(found) > 0 {
					err = errors.Join(err, fmt.Errorf("doctor: %v", found))
				}
				return errors.Join(err, e)
			})
		}

		// Another machine gets its name, and then the first one comes back.
		m.Add(name, "tokyo", false)
		m.AwaitWhole()
		if _, err := at.ChangeNode(ctx, name, admin.NodeChange{Set: ukai.Labels{"rack": "r1"}}); err != nil {
			t.Errorf("the name means two nodes: %v", err)
		}
		<-log.found
		log.found <- map[string]bool{}
		old.Boot()
		m.Await("it learns why it is not let in", func() error {
			s, err := old.Status(ctx)
			if err == nil && !slices.ContainsFunc(s.Warnings, func(w admin.Warning) bool {
				return w.Level == admin.Critical && strings.Contains(w.Text, "was retired")
			}) {
				err = fmt.Errorf("warnings %v", s.Warnings)
			}
			return err
		})
		if _, err := old.OpenDisk("vm1"); !errors.Is(err, ukai.ErrQuarantined) {
			t.Errorf("it serves: %v", err)
		}
		m.Await("the logs tell", func() error {
			if !log.has(name, "was retired", "empty its data directory") || !log.has("t1", old.ID().Short(), "was retired", "empty its data directory") {
				return errors.New("not told")
			}
			return nil
		})
		time.Sleep(2 * time.Minute)
		if s, err := at.Status(ctx); err != nil || len(s.Nodes) != 5 || slices.ContainsFunc(s.Nodes, func(x admin.Node) bool { return x.ID == old.ID() }) {
			t.Errorf("it is in the mesh again: %v %v", s.Nodes, err)
		}
		if kept := old.Store.Replicas(); len(kept) != 1 {
			t.Errorf("%d replicas are left on it", len(kept))
		}
	})
}

func TestWhereMostArbitersAreRetiredTheDiskIsNamedAndCanBeForced(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo w1:fukuoka:witness", func(t *testing.T, m *Mesh) {
		m.Create("vm1", 4<<20, "dc=tokyo:2")
		ctx := context.Background()
		t1 := m.Nodes["t1"]
		want := pattern(3, 1<<20)
		d := t1.Volume("vm1")
		if _, err := d.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		m.unused(t1, "vm1")
		m.Nodes["t2"].Crash()
		m.Nodes["w1"].Crash()
		m.awaitRetired(t1, "t2")
		out := m.awaitRetired(t1, "w1")
		i := slices.IndexFunc(out.Warnings, func(w admin.Warning) bool { return w.Disk == "vm1" && w.Level == admin.Critical })
		if i < 0 || !strings.Contains(out.Warnings[i].Remedy, "ukai-node disk force vm1 --gone t2,w1") {
			t.Fatalf("what is left to do is not told: %v", out.Warnings)
		}
		if _, err := t1.ForceDisk(ctx, "vm1", admin.ForceDisk{Gone: []string{"t2", "w1"}}); err != nil {
			t.Fatal(err)
		}
		m.Await("it goes on", func() error { return d.Attach(ctx) })
		got := make([]byte, len(want))
		if _, err := d.ReadAt(ctx, got, 0); err != nil || !slices.Equal(got, want) {
			t.Errorf("its data: %v", err)
		}
		if err := d.Detach(ctx); err != nil {
			t.Fatal(err)
		}
	})
}
