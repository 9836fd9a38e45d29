package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ukai/node/admin"
)

// crossing returns how many bytes have been sent between two places, both ways.
func (m *Mesh) crossing(a, b string) uint64 {
	if a == b {
		return m.Net.Sent(a, b)
	}
	return m.Net.Sent(a, b) + m.Net.Sent(b, a)
}

// filled makes a disk full of data that is attached to its only node.
func (m *Mesh) filled(node, disk string, size int) {
	m.T.Helper()
	m.Create(disk, int64(size), "node="+node+":1")
	d := m.Nodes[node].Volume(disk)
	if err := d.Attach(context.Background()); err != nil {
		m.T.Fatal(err)
	}
	p := pattern(uint64(size)+uint64(disk[len(disk)-1]), size)
	for off := 0; off < size; off += 1 << 20 {
		if _, err := d.WriteAt(context.Background(), p[off:off+1<<20], int64(off)); err != nil {
			m.T.Fatal(err)
		}
	}
	if err := d.Flush(context.Background()); err != nil {
		m.T.Fatal(err)
	}
}

func (m *Mesh) place(node, disk string, terms ...string) {
	m.T.Helper()
	if _, err := m.Nodes[node].PlaceDisk(context.Background(), disk, admin.PlaceDisk{Rule: admin.Rule{Terms: terms}}); err != nil {
		m.T.Fatal(err)
	}
}

func (m *Mesh) limit(node, link, limit string, at ...string) {
	m.T.Helper()
	if _, err := m.Nodes[node].SetLink(context.Background(), link, admin.SetLink{Limit: limit, At: at}); err != nil {
		m.T.Fatal(err)
	}
	time.Sleep(2 * time.Second) // until all have heard of it
}

// inSyncOn says how many of a disk's replicas are in sync on nodes of a datacenter, as a node knows.
func inSyncOn(n *Node, disk, dc string) (count int) {
	d, err := n.Disk(context.Background(), disk)
	if err != nil {
		return 0
	}
	for _, r := range d.Replicas {
		if r.Role == admin.InSync && r.Labels["dc"] == dc {
			count++
		}
	}
	return count
}

func TestTwoNodesThatCopyOverALinkKeepItsBudgetTogetherAndShareIt(t *testing.T) {
	bubble(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka")
		m.filled("t1", "vm1", 16<<20)
		m.filled("t2", "vm2", 16<<20)
		m.filled("t2", "vm3", 4<<20)
		const limit = 1 << 20
		m.limit("o2", "tokyo-osaka", "1MiB/s")
		m.place("t1", "vm1", "node=o1:1")
		m.place("t1", "vm2", "node=o2:1")
		time.Sleep(10 * time.Second) // both have begun, and know it of each other
		// Another disk, within a datacenter: it does not wait for the link.
		m.place("t1", "vm3", "node=t1:1")
		near := m.Await("vm3 is in sync on t1", func() error {
			if inSyncOn(m.Nodes["t1"], "vm3", "tokyo") != 1 || m.holds("t1", "vm3") != nil {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		if near > 10*time.Second {
			t.Errorf("a copy within tokyo took %v: it waited for the link to osaka", near)
		}
		for range 10 { // of 1 s: no second may be over
			before := m.crossing("tokyo", "osaka")
			time.Sleep(time.Second)
			if got := m.crossing("tokyo", "osaka") - before; got > limit*115/100+256<<10 {
				t.Errorf("%d bytes crossed in a second, of %d", got, limit)
			} else if got < limit*70/100 {
				t.Errorf("only %d bytes crossed in a second, of %d that may", got, limit)
			}
		}
		links, err := m.Nodes["o1"].Links(context.Background())
		if err != nil || len(links) != 1 || fmt.Sprint(links[0].Copying) != "[t1 t2]" {
			t.Fatalf("%v: %+v", err, links)
		}
		took := [2]time.Duration{}
		start := time.Now()
		m.Await("both are in osaka", func() error {
			for i, vm := range []string{"vm1", "vm2"} {
				if took[i] == 0 && inSyncOn(m.Nodes["o1"], vm, "osaka") == 1 {
					took[i] = time.Since(start)
				}
			}
			if took[0] == 0 || took[1] == 0 {
				return fmt.Errorf("after %v", took)
			}
			return nil
		})
		if a, b := took[0], took[1]; a > 2*b+5*time.Second || b > 2*a+5*time.Second {
			t.Errorf("one disk was copied after %v, the other of the same size after %v", a, b)
		}
	})
}

// holds says nil if a node has a replica of a disk that is in sync.
func (m *Mesh) holds(node, disk string) error {
	d, err := m.Nodes[node].Disk(context.Background(), disk)
	if err != nil {
		return err
	}
	for _, r := range d.Replicas {
		if r.Node.Name == node && r.Role == admin.InSync {
			return nil
		}
	}
	return fmt.Errorf("%s has no replica of %s in sync", node, disk)
}

func TestALinkAtLimitZeroCarriesNoCopiesAndTheGuestDoesNotNotice(t *testing.T) {
	bubble(t, "t1:tokyo o1:osaka", func(t *testing.T, m *Mesh) {
		wan(m, 10*time.Millisecond, 0, "tokyo", "osaka")
		m.filled("t1", "vm1", 8<<20)
		m.limit("o1", "osaka-tokyo", "0")
		m.place("o1", "vm1", "node=t1:1", "node=o1:1")
		m.Await("the replica is being made", func() error {
			got, err := locations(m.Nodes["t1"], "vm1")
			if err == nil && len(got) != 2 {
				err = fmt.Errorf("it is on %v", got)
			}
			return err
		})
		before := m.crossing("tokyo", "osaka")
		d := m.Nodes["t1"].Volume("vm1")
		for i := range 60 {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			if _, err := d.WriteAt(ctx, pattern(uint64(i), 4096), int64(i)*128<<10); err != nil {
				t.Fatalf("a write while a copy waits for its link: %v", err)
			}
			cancel()
			time.Sleep(time.Second)
		}
		if got := m.crossing("tokyo", "osaka") - before; got > 1<<20 {
			t.Errorf("%d bytes crossed a link that carries no copies", got)
		}
		m.limit("o1", "osaka-tokyo", "none")
		m.awaitLocations(m.Nodes["t1"], "vm1", "o1 in sync", "t1 in sync")
	})
}
