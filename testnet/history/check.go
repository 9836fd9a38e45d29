package history

import (
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// access is one sector's share of an operation or of a takeover, as the checker wants it.
type access struct {
	kind  Kind
	id    ID   // written or seen
	own   bool // a flush: only of what its node wrote
	lossy bool
	maybe bool // it may have had no effect
	node  string
}

// cell is one possible state of a sector.
type cell struct {
	now ID
	by  string // the node that wrote it
	// kept are the contents that a loss of power may leave: that of the last flush, and all since.
	kept []ID // sorted
}

func (c cell) equal(d cell) bool {
	return c.now == d.now && c.by == d.by && slices.Equal(c.kept, d.kept)
}

// step returns what a sector may be after an access, nothing if it cannot have shown what was seen.
func (c cell) step(a access) []cell {
	switch {
	case a.lossy:
		var after []cell
		for _, id := range c.kept {
			after = append(after, cell{now: id, kept: []ID{id}})
		}
		return after
	case a.kind == Flush && a.own && c.by != a.node:
		return []cell{c}
	case a.kind == Flush:
		return []cell{{c.now, c.by, []ID{c.now}}}
	case a.kind == Read && c.now != a.id:
		return nil
	case a.kind == Write:
		kept := c.kept
		if i, there := slices.BinarySearch(kept, a.id); !there {
			kept = slices.Insert(slices.Clone(kept), i, a.id)
		}
		after := []cell{{a.id, a.node, kept}}
		if a.maybe {
			after = append(after, c)
		}
		return after
	}
	return []cell{c}
}

func describe(input, _ any) string {
	a := input.(access)
	switch {
	case a.lossy:
		return a.node + " takes over after a loss of power"
	case a.kind == Flush:
		return a.node + " flushes"
	case a.kind == Write:
		return fmt.Sprintf("%s writes %d", a.node, a.id)
	}
	return fmt.Sprintf("%s reads %d", a.node, a.id)
}

// register is the model of a sector without losses of power: a read sees the last write.
var register = porcupine.Model{
	Init: func() any { return ID(0) },
	Step: func(state, input, _ any) (bool, any) {
		switch a := input.(access); a.kind {
		case Write:
			return true, a.id
		case Read:
			return state.(ID) == a.id, state
		}
		return true, state
	},
	Hash:              func(state any) uint64 { return uint64(state.(ID)) },
	DescribeOperation: describe,
}

// volatile is the model of a sector of a disk that may lose power: what was not flushed may go with the holder.
var volatile = func() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{cell{kept: []ID{0}}} },
		Step: func(state, input, _ any) (after []any) {
			for _, c := range state.(cell).step(input.(access)) {
				after = append(after, c)
			}
			return after
		},
		Equal: func(a, b any) bool { return a.(cell).equal(b.(cell)) },
		Hash: func(state any) uint64 {
			h := fnv.New64a()
			_, _ = fmt.Fprint(h, state)
			return h.Sum64()
		},
		DescribeOperation: describe,
	}
	return m.ToModel()
}()

// plain says whether nothing may have been lost, and each write that had an effect on a sector that was read can be told from
// all others: a write of zeros that failed cannot.
func (h *History) plain() bool {
	return !h.lossy() && !slices.ContainsFunc(h.ops, func(o *Op) bool { return o.Kind == Write && o.ID == 0 && o.End == Maybe })
}

// lossy says whether anything may have been lost at all.
func (h *History) lossy() bool {
	return slices.ContainsFunc(h.takeovers, func(t Takeover) bool { return t.Lossy })
}

// sectors splits the history. A write that failed counts only where somebody saw it: one that nobody saw constrains nothing. Then
// it did take effect, within its deadline.
func (h *History) sectors() map[int64][]porcupine.Operation {
	type place struct {
		id     ID
		sector int64
	}
	seen := map[place]bool{}
	for _, o := range h.ops {
		for i, id := range o.Saw {
			seen[place{id, o.Sector + int64(i)}] = true
		}
	}
	all := map[int64][]porcupine.Operation{}
	for _, o := range h.ops {
		if o.Kind != Write && o.End != Done || o.Kind == Flush {
			continue
		}
		ret := o.Ret
		if o.End == Maybe {
			ret = h.deadline(o)
		}
		for i := range o.Count {
			sector := o.Sector + int64(i)
			a := access{kind: o.Kind, id: o.ID, node: o.Node, maybe: o.ID == 0 && o.End == Maybe}
			if o.Kind == Write && o.End != Done && !seen[place{o.ID, sector}] {
				continue
			}
			if o.Kind == Read {
				a.id = o.Saw[i]
			}
			all[sector] = append(all[sector], operation(a, o.Worker, o.Call, ret))
		}
	}
	if !h.lossy() {
		return all
	}
	// A flush and a loss concern every sector.
	var common []porcupine.Operation
	for _, o := range h.ops {
		if o.Kind == Flush && o.End == Done {
			common = append(common, operation(access{kind: Flush, own: o.Own, node: o.Node}, o.Worker, o.Call, o.Ret))
		}
	}
	for i, t := range h.takeovers {
		if t.Lossy {
			common = append(common, operation(access{lossy: true, node: t.Node}, -1, h.begun(i), t.At))
		}
	}
	for sector, ops := range all {
		first, last := span(ops)
		for _, c := range common {
			if c.Return > first && c.Call < last { // before or after, it makes no difference
				ops = append(ops, c)
			}
		}
		all[sector] = ops
	}
	return all
}

// span returns when the first of some operations was called, and when the last one returned.
func span(ops []porcupine.Operation) (first, last int64) {
	first = math.MaxInt64
	for _, o := range ops {
		first, last = min(first, o.Call), max(last, o.Return)
	}
	return first, last
}

// noticed is how long before a takeover was told of its holder may have answered already.
const noticed = time.Millisecond

// begun returns a time before which a takeover lost nothing: nobody acknowledged anything between what it lost and its
// activation.
func (h *History) begun(i int) time.Time {
	begun := time.Unix(0, 0)
	if i > 0 {
		begun = h.takeovers[i-1].At
	}
	for _, o := range h.ops {
		if o.Kind != Read && o.End == Done && o.Ret.After(begun) && o.Ret.Before(h.takeovers[i].At.Add(-noticed)) {
			begun = o.Ret.Add(1) // after it
		}
	}
	return begun
}

// operation makes one for the checker; the zero time is the end of time.
func operation(a access, worker int, call, ret time.Time) porcupine.Operation {
	end := int64(math.MaxInt64)
	if !ret.IsZero() {
		end = ret.UnixNano()
	}
	return porcupine.Operation{ClientId: worker, Input: a, Call: call.UnixNano(), Return: end}
}

// Verdict is what became of checking a history.
type Verdict struct {
	Sectors, Accesses, Unknown int
	Violations                 []string
}

// CheckFor bounds the time for one sector; usual is milliseconds.
const CheckFor = 20 * time.Second

// Check checks every sector, and writes the history of those that no correct disk could have shown to dir. Nothing may be
// added meanwhile.
func (h *History) Check(dir string) (v Verdict) {
	h.judge()
	refused := map[ID]*Op{}
	for _, o := range h.ops {
		if o.Kind == Write && o.End == Refused {
			refused[o.ID] = o
		}
	}
	for _, o := range h.ops {
		for _, id := range o.Saw {
			if r := refused[id]; r != nil {
				v.Violations = append(v.Violations, fmt.Sprintf("a refused write took effect: %v; seen by %v", r, o))
				break
			}
		}
	}
	model := register
	if !h.plain() {
		model = volatile
	}
	for sector, ops := range h.sectors() {
		v.Sectors++
		v.Accesses += len(ops)
		result, info := porcupine.CheckOperationsVerbose(model, ops, CheckFor)
		switch result {
		case porcupine.Unknown:
			v.Unknown++
		case porcupine.Illegal:
			path := filepath.Join(dir, fmt.Sprintf("sector-%d", sector))
			v.Violations = append(v.Violations, fmt.Sprintf("sector %d is not linearizable: see %s", sector, path))
			if err := os.WriteFile(path, []byte(h.Tell(sector)), 0o600); err != nil {
				v.Violations = append(v.Violations, err.Error())
			}
			_ = porcupine.VisualizePath(model, info, path+".html") // a picture of the same
		}
	}
	return v
}
