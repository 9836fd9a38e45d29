//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"ukai/testnet/proc"
	"ukai/testnet/wan"
)

// The limits of the test of a VM that leaves a datacenter.
const (
	leavingData  = 24 << 20 // beside what the guest writes
	leavingOff   = 32 << 20 // where that begins
	guestMiB     = 1        // what the guest writes
	leavingLimit = 3 << 20  // bytes per second of copies between the datacenters
)

// placement is what a dry run tells.
type placement struct {
	Costs struct {
		Bytes       int64
		Seconds     float64
		LeastInSync int
		Links       []struct {
			From, To string
			Bytes    int64
		}
	}
}

// leavingJob is what `jobs` tells.
type leavingJob struct {
	Disk                  struct{ Name string }
	State, Why            string
	DoneBytes, TotalBytes int64
	Since, Ended          time.Time
}

// diskShown is what `disk show` tells.
type diskShown struct {
	State    string
	Holder   *struct{ Name string }
	Replicas []struct {
		Node struct{ Name string }
		Role string
	}
	Arbiters []struct{ Node struct{ Name string } }
}

// inSync returns the nodes with a replica in sync, by name.
func (d *diskShown) inSync() (nodes []string) {
	for _, r := range d.Replicas {
		if r.Role == "in sync" {
			nodes = append(nodes, r.Node.Name)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// A VM moves from Tokyo to Osaka, its disk after it, and then Tokyo is gone.
func TestAGuestLeavesADatacenterWithItsDiskAndOutlivesIt(t *testing.T) {
	img := guestImage(t)
	m := proc.Start(t, "t1:tokyo t2:tokyo o1:osaka o2:osaka w1:fukuoka:witness")
	for _, pair := range [][2]string{{"tokyo", "osaka"}, {"tokyo", "fukuoka"}, {"osaka", "fukuoka"}} {
		m.Net.SetBoth(pair[0], pair[1], wan.Link{Delay: 10 * time.Millisecond}) // a round trip of 20 ms
	}
	t1, o1 := m.Nodes["t1"], m.Nodes["o1"]
	o1.Must("link", "tokyo-osaka", "--limit", "3MiB/s")
	t1.Must("disk", "create", vmDisk, "128M", "dc=tokyo:2")
	m.AwaitDisk(vmDisk)
	data := fill(t, t1.Path(vmDisk))
	v := startVM(m, img, guestMiB)
	v.migrate("o1")
	v.works()

	var disk diskShown
	m.Await("o2 knows that o1 has the disk", func() error {
		err := m.Nodes["o2"].JSON(&disk, "disk", "show", vmDisk)
		if err == nil && (disk.Holder == nil || disk.Holder.Name != "o1" || disk.State != "attached") {
			err = fmt.Errorf("%s by %v", disk.State, disk.Holder)
		}
		return err
	})
	var plan placement
	if err := m.Nodes["o2"].JSON(&plan, "place", "disk", vmDisk, "dc=osaka:2", "--dry-run"); err != nil {
		t.Fatal(err)
	}
	across := int64(0)
	for _, l := range plan.Costs.Links {
		if l.From == "tokyo" && l.To == "osaka" {
			across += l.Bytes
		}
	}
	if plan.Costs.LeastInSync != 2 || across < leavingData || plan.Costs.Bytes != 2*across {
		t.Fatalf("the plan: %+v, want %d bytes and some of the guest across the link, as many within osaka, and 2 copies at each moment", plan.Costs, leavingData)
	}
	copied, crossed, rounds := resynced(t, m), sentBetween(m, "t", "o"), v.Rounds()
	o1.Must("place", "disk", vmDisk, "dc=osaka:2")
	var job leavingJob
	m.Await("the disk is in osaka", func() error {
		if err := o1.JSON(&disk, "disk", "show", vmDisk); err != nil {
			return err
		}
		if in := disk.inSync(); len(in) < 2 {
			t.Fatalf("only %v in sync while the disk moves: %+v", in, disk)
		}
		var jobs []leavingJob
		if err := o1.JSON(&jobs, "jobs", "--all"); err != nil {
			return err
		}
		i := slices.IndexFunc(jobs, func(j leavingJob) bool { return j.Disk.Name == vmDisk })
		if i < 0 {
			return errors.New("no job")
		}
		if job = jobs[i]; job.State != "done" {
			return fmt.Errorf("%+v", job)
		}
		return nil
	})
	copied, crossed, rounds = resynced(t, m)-copied, sentBetween(m, "t", "o")-crossed, v.Rounds()-rounds
	took, forced := job.Ended.Sub(job.Since), time.Duration(float64(across)/leavingLimit*float64(time.Second))
	t.Logf("the plan: %d bytes, %d of them across the link, in %.1f s; copied %.0f, %d crossed the link with all else, in %v", plan.Costs.Bytes, across, plan.Costs.Seconds, copied, crossed, took)
	within(t, "bytes copied", float64(copied), float64(plan.Costs.Bytes), 20)
	// What is on the wire has headers and gossip, and what the guest reads before it is there: all of it once in each round at most, and answers to its writes.
	if most := across*12/10 + int64(rounds+2)*guestMiB<<20*12/10; int64(crossed) < across || int64(crossed) > most {
		t.Errorf("%d bytes crossed the link, the plan said %d, and with the %d rounds of the guest it may be %d", crossed, across, rounds, most)
	}
	within(t, "bytes that the job tells", float64(job.TotalBytes), float64(plan.Costs.Bytes), 20)
	// A busy machine may take longer, but nobody may take less time than the budget of the link leaves.
	if took < forced*8/10 {
		t.Errorf("it took %v, and the budget of the link allows %v at best", took, forced)
	}
	if least := 0.8 * forced.Seconds(); plan.Costs.Seconds < least {
		t.Errorf("the plan told %.1f s, and the budget of the link allows %v at best", plan.Costs.Seconds, forced)
	}
	v.works()

	for _, other := range []string{"osaka", "fukuoka"} {
		m.Net.SetBoth("tokyo", other, wan.Link{Down: true})
	}
	for range 2 {
		v.works()
	}
	v.ends()
	if err := o1.JSON(&disk, "disk", "show", vmDisk); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(disk.inSync()); got != "[o1 o2]" {
		t.Errorf("in sync in the end are %s: %+v", got, disk)
	}
	c := v.config("o2")
	c.Verify, c.Rounds = true, v.Rounds()
	if console, err := c.Run(t.Context()); err != nil {
		t.Errorf("what the guest left, through o2: %v: %s", err, console)
	}
	for _, node := range []string{"o1", "o2"} {
		same(t, m.Nodes[node].Path(vmDisk), data)
	}
}

// fill writes data that do not compress.
func fill(t *testing.T, path string) (data []byte) {
	t.Helper()
	data = make([]byte, leavingData)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(data) // it never fails
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, leavingOff)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return data
}

// same holds that what fill wrote is there.
func same(t *testing.T, path string, want []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, leavingOff); err != nil {
		t.Errorf("%s: %v", path, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s holds other data than were written", path)
	}
}

// resynced returns how many bytes all nodes have copied.
func resynced(t *testing.T, m *proc.Mesh) (sum float64) {
	t.Helper()
	for _, n := range m.Nodes {
		x, err := n.Metric("ukai_resync_bytes_total")
		if err != nil {
			t.Fatal(err)
		}
		sum += x
	}
	return sum
}

// sentBetween returns the bytes of packets that hosts of one name's first letter have sent to those of another.
func sentBetween(m *proc.Mesh, from, to string) (sum uint64) {
	for a := range m.Nodes {
		for b := range m.Nodes {
			if a[:1] == from && b[:1] == to {
				sum += m.Net.Sent(a, b)
			}
		}
	}
	return sum
}

// within holds that a figure is near another.
func within(t *testing.T, what string, got, want, percent float64) {
	t.Helper()
	if d := (got - want) / want * 100; d > percent || d < -percent {
		t.Errorf("%s: %.0f, want %.0f within %.0f %%, it differs by %.0f %%", what, got, want, percent, d)
	}
}
