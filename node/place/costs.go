package place

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

// AssumedRate is the bytes per second at which a copy runs where nothing else is known to hold it up: what one QUIC connection
// carries between two machines without effort.
const AssumedRate = 100 << 20

// Copying is how copies are made, and what is known about how fast they are.
type Copying struct {
	Rec   crdt.Record // before the plan
	Nodes []Node
	Near  Near
	// Holder has the disk attached; zero: nobody has, and the first node by id with an in-sync replica does the work.
	Holder ukai.NodeID
	// Window is how many bytes are under way at once; 0: no limit.
	Window int64
	// Pause is how long a step waits to be looked at.
	Pause time.Duration
	// Limit returns the bytes per second that a budget allows from one datacenter to another now: 0 lets nothing pass, negative is no limit. A nil
	// Limit knows none.
	Limit func(from, to string) int64
}

// Costs is what carrying out a plan takes.
type Costs struct {
	Steps []StepCosts
	Links []LinkBytes // between datacenters, with what stays within one, by name
	Pairs []LinkBytes // between nodes, by name
	Space []NodeSpace // by name
	Took  time.Duration
	// Least is the fewest copies in sync that any block has at any moment of the plan.
	Least int
	// Assumed says what was not known and what was taken instead.
	Assumed []string
}

// StepCosts is one step's part.
type StepCosts struct {
	Path   []ukai.NodeID // of the data, from its source through the node that copies to where the replica is made; nil if nothing is copied
	Bytes  int64         // copied
	Took   time.Duration
	Copies []Copies // of all blocks when the step is done; before that never fewer than after the step before, or than this
}

// Copies is how many copies in sync blocks have.
type Copies struct {
	Blocks []ukai.Range
	InSync int
}

// LinkBytes is what crosses a link in one direction.
type LinkBytes struct {
	From, To string
	Bytes    int64
}

// NodeSpace is the space a plan takes on a node, and gives back once replicas that it drops are freed.
type NodeSpace struct {
	Node       ukai.NodeID
	Name       string
	PeakBytes  int64 // taken at most at one moment, beside what is taken now
	FreedBytes int64 // later
	LeftBytes  int64 // free beyond the reserve at the peak
}

// Costs estimates what carrying out the plan takes. Bytes are upper bounds: what both sides have already is not sent, nor are chunks of zeros.
func (p Plan) Costs(c Copying) Costs {
	w := costing{Copying: c, rec: c.Rec.Clone(), byID: map[ukai.NodeID]Node{}}
	for _, n := range c.Nodes {
		w.byID[n.ID] = n
	}
	w.out.Least = least(&w.rec)
	for _, s := range p.Steps {
		w.step(s)
	}
	byName := func(a, b LinkBytes) int { return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To)) }
	slices.SortFunc(w.out.Links, byName)
	slices.SortFunc(w.out.Pairs, byName)
	slices.SortFunc(w.out.Space, func(a, b NodeSpace) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.Node[:], b.Node[:]))
	})
	for i := range w.out.Space {
		s := &w.out.Space[i]
		n := w.byID[s.Node]
		s.LeftBytes = n.available() - s.PeakBytes
	}
	return w.out
}

// costing is the making of Costs.
type costing struct {
	Copying
	rec  crdt.Record // as it is before the step
	byID map[ukai.NodeID]Node
	out  Costs
}

func (w *costing) step(s Step) {
	cost := StepCosts{Took: w.Pause}
	switch s.Kind {
	case AddReplica:
		cost.Bytes = s.Bytes
		cost.Path = w.path(s)
		w.space(s.Node).PeakBytes += s.Bytes - s.Reuses
		if s.Reuses > 0 {
			w.assume(w.byID[s.Node].name() + " has kept an old copy of " + size(s.Reuses) + ", and all of it has changed since: what is equal is not copied")
		}
		cost.Took += w.carry(cost.Path, s.Bytes)
	case DropReplica:
		w.space(s.Node).FreedBytes += s.Frees
	case MoveArbiters, SetMinSync:
	}
	s.apply(&w.rec)
	for i := range w.rec.Groups {
		g := &w.rec.Groups[i]
		cost.Copies = append(cost.Copies, Copies{Blocks: w.rec.RangesOf(g.ID), InSync: g.Count(crdt.InSync)})
	}
	w.out.Least = min(w.out.Least, least(&w.rec))
	w.out.Took += cost.Took
	w.out.Steps = append(w.out.Steps, cost)
}

func least(rec *crdt.Record) int {
	n := rec.Groups[0].Count(crdt.InSync)
	for i := range rec.Groups {
		n = min(n, rec.Groups[i].Count(crdt.InSync))
	}
	return n
}

// path returns the way of the data of a new replica: the node that has the disk reads from the copy that is nearest to it, and writes to the
// new one.
func (w *costing) path(s Step) []ukai.NodeID {
	by := w.Holder
	if by.IsZero() {
		for i := range w.rec.Groups {
			for _, m := range w.rec.Groups[i].InSync() {
				if w.byID[m.Node].Alive && (by.IsZero() || slices.Compare(m.Node[:], by[:]) < 0) {
					by = m.Node
				}
			}
		}
	}
	var from ukai.NodeID
	var best time.Duration
	for i := range w.rec.Groups {
		if w.rec.Groups[i].ID != s.Group {
			continue
		}
		for _, m := range w.rec.Groups[i].InSync() {
			n := w.byID[m.Node]
			if d := w.Near.known(w.byID[by], n); n.Alive && (from.IsZero() || d < best) {
				from, best = m.Node, d
			}
		}
	}
	return slices.Compact([]ukai.NodeID{from, by, s.Node})
}

// carry counts what travels along a path, and returns how long it takes.
func (w *costing) carry(path []ukai.NodeID, bytes int64) time.Duration {
	var trip time.Duration // of one piece: read, then written
	rate := int64(AssumedRate)
	assumed := true
	for i := range len(path) - 1 {
		a, b := w.byID[path[i]], w.byID[path[i+1]]
		trip += w.Near.known(a, b)
		if w.Near == nil {
			w.assume("round trips are not known: 1 ms within a datacenter, 50 ms between two")
		}
		w.add(&w.out.Pairs, a.name(), b.name(), bytes)
		w.add(&w.out.Links, a.dc(), b.dc(), bytes)
		if w.Limit == nil {
			continue
		}
		switch limit := w.Limit(a.dc(), b.dc()); {
		case limit == 0:
			w.assume("the budget of the link from " + a.dc() + " to " + b.dc() + " lets nothing pass now: the time counts from when it does")
		case limit > 0 && limit < rate:
			rate, assumed = limit, false
		}
	}
	if w.Window > 0 && trip > 0 {
		if r := int64(float64(w.Window) / trip.Seconds()); r < rate {
			rate, assumed = r, false
		}
	}
	if assumed && bytes > 0 {
		w.assume("copies run at " + size(AssumedRate) + "/s")
	}
	return time.Duration(float64(bytes) / float64(rate) * float64(time.Second))
}

func (w *costing) assume(what string) {
	if !slices.Contains(w.out.Assumed, what) {
		w.out.Assumed = append(w.out.Assumed, what)
	}
}

func (w *costing) add(list *[]LinkBytes, from, to string, bytes int64) {
	i := slices.IndexFunc(*list, func(l LinkBytes) bool { return l.From == from && l.To == to })
	if i < 0 {
		i = len(*list)
		*list = append(*list, LinkBytes{From: from, To: to})
	}
	(*list)[i].Bytes += bytes
}

func (w *costing) space(node ukai.NodeID) *NodeSpace {
	i := slices.IndexFunc(w.out.Space, func(s NodeSpace) bool { return s.Node == node })
	if i < 0 {
		i = len(w.out.Space)
		n, known := w.byID[node]
		if !known {
			n.ID = node
		}
		w.out.Space = append(w.out.Space, NodeSpace{Node: node, Name: n.name()})
	}
	return &w.out.Space[i]
}
