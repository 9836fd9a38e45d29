package admintest

import (
	"context"
	"fmt"
	"slices"

	"ukai"
	"ukai/node/admin"
)

// Jobs has a relocation, by t1, for each disk whose rule is not met, almost half of it done.
func (f *Fake) Jobs(_ context.Context, q admin.JobQuery) ([]admin.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.jobs(), nil
}

func (f *Fake) jobs() (list []admin.Job) {
	for _, d := range f.disks {
		if d.Removed != nil || d.RuleMet {
			continue
		}
		n := f.node("t1")
		j := admin.Job{
			Disk: admin.DiskRef{ID: d.ID, Name: d.Name}, Kind: "relocation", State: admin.JobRunning, Doing: "a replica is made on o1",
			Node: admin.NodeRef{ID: n.ID, Name: n.Name}, StepsLeft: 2, DoneBytes: d.SizeBytes * 45 / 100, TotalBytes: d.SizeBytes, Percent: 45,
			BytesPerSecond: 50e6, ETASeconds: d.SizeBytes * 55 / 100 / 50e6, Since: Epoch,
		}
		if f.paused[d.ID] {
			j.State, j.Why, j.BytesPerSecond, j.ETASeconds = admin.JobPaused, "paused by an administrator", 0, 0
		}
		list = append(list, j)
	}
	return list
}

// WatchJobs tells of all jobs, and then that all but those that are paused are done.
func (f *Fake) WatchJobs(ctx context.Context) (<-chan []admin.Job, error) {
	out := make(chan []admin.Job)
	go func() {
		defer close(out)
		for range 2 {
			f.mu.Lock()
			list := f.jobs()
			f.mu.Unlock()
			select {
			case out <- list:
			case <-ctx.Done():
				return
			}
			f.mu.Lock()
			for i := range list {
				if !f.paused[list[i].Disk.ID] {
					j := &list[i]
					j.State, j.Percent, j.DoneBytes, j.Ended, j.BytesPerSecond, j.ETASeconds = admin.JobDone, 100, j.TotalBytes, Epoch, 0, 0
					if d, err := f.disk(list[i].Disk.Name); err == nil {
						d.RuleMet = true
					}
				}
			}
			f.mu.Unlock()
			select {
			case out <- list:
			case <-ctx.Done():
				return
			}
		}
		<-ctx.Done()
	}()
	return out, nil
}

// OrderJob pauses and resumes; nothing can be cancelled.
func (f *Fake) OrderJob(_ context.Context, disk string, o admin.OrderJob) (admin.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.disk(disk)
	if err != nil {
		return admin.Job{}, err
	}
	has := func(j admin.Job) bool { return j.Disk.ID == d.ID }
	if !slices.ContainsFunc(f.jobs(), has) {
		return admin.Job{}, fmt.Errorf("%s the job of disk %s: %w: nothing is to be done for it", o.Order, disk, ukai.ErrNotFound)
	}
	if o.Order == admin.OrderCancel {
		return admin.Job{}, fmt.Errorf("cancel the job of disk %s: %w: no rule is known that it had before", disk, ukai.ErrRejected)
	}
	f.paused[d.ID] = o.Order == admin.OrderPause
	list := f.jobs()
	return list[slices.IndexFunc(list, has)], nil
}

// Evacuate drains a node at once, if no disk has a replica there.
func (f *Fake) Evacuate(_ context.Context, e admin.Evacuate) (admin.Evacuation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(e.Nodes)
	if n == nil {
		return admin.Evacuation{}, fmt.Errorf("evacuate %s: %w: no node is meant", e.Nodes, ukai.ErrNotFound)
	}
	out := admin.Evacuation{Nodes: []admin.NodeRef{{ID: n.ID, Name: n.Name}}, Draining: n.Drain, DryRun: e.DryRun}
	for _, d := range f.disks {
		if !slices.ContainsFunc(d.Replicas, func(r admin.Replica) bool { return r.Node.ID == n.ID }) {
			continue
		}
		ref := admin.DiskRef{ID: d.ID, Name: d.Name}
		out.Replicas++
		out.DisksTotal++
		out.CopyBytes += d.SizeBytes
		out.Moves = append(out.Moves, admin.Evacuating{Disk: ref, Steps: []admin.Step{{Kind: "add", Bytes: d.SizeBytes, Text: "a replica is made on o1"}}})
		out.Problems = append(out.Problems, admin.Warning{Level: admin.Critical, Code: "evacuation", Disk: d.Name, Text: "disk " + d.Name + ": 1 of 2 nodes for dc=tokyo", Remedy: "start another node in tokyo"})
	}
	out.Safe = out.Replicas == 0
	if e.DryRun {
		return out, nil
	}
	if len(out.Problems) > 0 && !e.Cancel {
		return admin.Evacuation{}, fmt.Errorf("evacuate %s: %w: %s", e.Nodes, ukai.ErrUnmet, out.Problems[0].Text)
	}
	n.Drain, out.Draining = !e.Cancel, !e.Cancel
	return out, nil
}
