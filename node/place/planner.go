package place

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
)

// Bounds on what a Planner keeps between disks. At either all of it is forgotten and found out anew.
const (
	maxEligible  = 1024
	maxElections = 4096
)

// Planner plans for many disks of one mesh at one moment: what depends only on the nodes is found out once. It is used by one goroutine.
type Planner struct {
	// Lost, Fewer, Ranges and Kept are those of Input, of the disks to come.
	Lost   map[ukai.ReplicaID]time.Time
	Fewer  bool
	Ranges RangeRules
	Kept   map[ukai.NodeID]int64

	now    time.Time
	nodes  []Node // by name
	index  map[ukai.NodeID]int
	near   Near
	leaves []string // why a replica on the node may not stay there; "" if it may
	keeps  []bool   // nodes that can keep a quorum record: alive, or down for a moment only
	room   []room
	dcs    []int // equal for nodes that fail together, by datacenter
	racks  []int // and by rack
	far    [][]time.Duration

	eligible  map[string]*eligibility
	elections map[replicaSet]*election
	search    search // its memory is used again and again
	rest      []arbiterRank
	seen      []int // by rack: the last turn of a shortlist in which one of it was taken
	turn      int

	thorough bool // by tests: never trusts a short cut
}

// room is a node's space as the search compares it.
type room struct {
	exact  int64
	coarse int64 // or the last byte would decide
	share  int64 // of the capacity, in twentieths
}

// NewPlanner makes a planner of a mesh with these nodes. now and repairAfter are those of Input.
func NewPlanner(nodes []Node, near Near, now time.Time, repairAfter time.Duration) *Planner {
	p := newPlanner(nodes, near)
	p.now = now
	if repairAfter == 0 {
		repairAfter = DefaultRepairAfter
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		long := !n.Alive && repairAfter > 0 && !n.DownSince.IsZero() && now.Sub(n.DownSince) >= repairAfter
		p.keeps[i] = !long // a node that is down for a moment keeps its place
		p.leaves[i] = n.leaves(long)
	}
	return p
}

// newPlanner makes a planner that waits for no node that is down.
func newPlanner(nodes []Node, near Near) *Planner {
	p := &Planner{
		nodes: byName(nodes), near: near, index: make(map[ukai.NodeID]int, len(nodes)), leaves: make([]string, len(nodes)), keeps: make([]bool, len(nodes)),
		room: make([]room, len(nodes)), dcs: make([]int, len(nodes)), racks: make([]int, len(nodes)), far: make([][]time.Duration, len(nodes)),
		eligible: map[string]*eligibility{}, elections: map[replicaSet]*election{}, seen: make([]int, len(nodes)),
	}
	dcs, racks := map[string]int{}, map[string]int{}
	number := func(of map[string]int, key string) int {
		id, ok := of[key]
		if !ok {
			id = len(of)
			of[key] = id
		}
		return id
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		p.index[n.ID] = i
		p.keeps[i] = n.Alive
		p.dcs[i], p.racks[i] = number(dcs, n.dc()), number(racks, n.domain())
		r := n.room()
		p.room[i] = room{exact: r, coarse: coarse(r)}
		if n.CapacityBytes > 0 {
			p.room[i].share = 20 * r / n.CapacityBytes
		}
	}
	p.search.p = p
	return p
}

// leaves says why a replica may not stay on a node; "" if it may. long says that the node is down for longer than is waited for.
func (n *Node) leaves(long bool) string {
	switch {
	case n.Witness:
		return n.name() + " is a witness and stores no blocks"
	case n.Drain:
		return n.name() + " is being drained"
	case long:
		return n.name() + " " + n.down()
	}
	return ""
}

// stays says why the replica of a member may not stay where it is; "" if it may.
func (p *Planner) stays(id ukai.NodeID) string {
	if i, known := p.index[id]; known {
		return p.leaves[i]
	}
	return "its node has left the mesh for good"
}

// lost says whether a member is to be replaced though its node is alive.
func (p *Planner) lost(m crdt.Member) bool {
	since, ok := p.Lost[m.Replica]
	return ok && m.Role != crdt.InSync && m.Role != crdt.Async && p.now.Sub(since) >= LostAfter
}

// distances returns the round trips from a node to all.
func (p *Planner) distances(from int) []time.Duration {
	if p.far[from] == nil {
		row := make([]time.Duration, len(p.nodes))
		for i := range row {
			row[i] = p.near.known(p.nodes[from], p.nodes[i])
		}
		p.far[from] = row
	}
	return p.far[from]
}

// eligibility is what a rule says about the nodes of a mesh.
type eligibility struct {
	want   []int    // replicas of each term
	terms  []uint64 // of a node, bit t: term t may use it; 0 also if it lacks a label to spread by
	values [][]int  // of each key that replicas must differ in, and of a node: equal for the same value
	class  []int    // of a node: equal for those that are interchangeable to the rule
}

// eligibility returns what a rule says about the nodes. The error matches ukai.ErrInvalid for a rule that means nothing.
func (p *Planner) eligibility(r Rule) (*eligibility, error) {
	if len(r.Terms) == 0 {
		return nil, fmt.Errorf("place disk: %w: the rule is empty; say where the copies go, %s", ukai.ErrInvalid, examples)
	}
	key := r.String()
	if e := p.eligible[key]; e != nil {
		return e, nil
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if _, err := r.At(nil); err != nil {
		return nil, err // whoever plans says what $here is
	}
	e := &eligibility{
		want: make([]int, len(r.Terms)), terms: make([]uint64, len(p.nodes)), values: make([][]int, max(1, len(r.Spread))), class: make([]int, len(p.nodes)),
	}
	for t := range e.want {
		e.want[t] = r.Terms[t].Count
	}
	for k := range e.values {
		e.values[k] = make([]int, len(p.nodes))
	}
	ids, classes := make([]map[string]int, len(r.Spread)), map[string]int{}
	for i := range p.nodes {
		n := &p.nodes[i]
		for t, term := range r.Terms {
			if term.matches(*n) {
				e.terms[i] |= 1 << t
			}
		}
		if lacks(r, *n) != "" {
			e.terms[i] = 0
		}
		class := []string{strconv.FormatUint(e.terms[i], 16)}
		for k, key := range r.Spread {
			if ids[k] == nil {
				ids[k] = map[string]int{}
			}
			v := n.value(key)
			if _, ok := ids[k][v]; !ok {
				ids[k][v] = len(ids[k])
			}
			e.values[k][i] = ids[k][v]
			class = append(class, v)
		}
		if len(r.Spread) == 0 {
			e.values[0][i] = i // any two nodes will do
		}
		name := strings.Join(class, "\x00")
		if _, ok := classes[name]; !ok {
			classes[name] = len(classes)
		}
		e.class[i] = classes[name]
	}
	if len(p.eligible) >= maxEligible {
		clear(p.eligible)
	}
	p.eligible[key] = e
	return e, nil
}

// replicas returns how many copies the rule asks for.
func (e *eligibility) replicas() (n int) {
	for _, c := range e.want {
		n += c
	}
	return n
}

// Plan is Relocate for one of many disks: allocated is how many bytes a full replica takes, 0 if that is not known. The plan has no Reasons.
func (p *Planner) Plan(rule Rule, rec crdt.Record, allocated int64) (Plan, error) {
	e, err := p.eligibility(rule)
	if err != nil {
		return Plan{}, err
	}
	w := work{p: p, e: e, rule: rule, rec: &rec, allocated: allocated, inSync: p.Ranges.InSync(rule)}
	if allocated <= 0 || allocated > rec.Size {
		w.allocated = rec.Size
	}
	if err := w.run(); err != nil {
		return Plan{}, err
	}
	return w.plan, nil
}

// searching returns the planner's search, prepared for a rule and without candidates.
func (p *Planner) searching(e *eligibility, size int64) *search {
	s := &p.search
	s.e, s.size, s.candidates, s.steps, s.gaveUp = e, size, s.candidates[:0], 0, false
	if s.kept == nil {
		s.kept = make([]uint8, len(p.nodes))
	}
	clear(s.kept)
	return s
}

func (p *Planner) ids(nodes []int) []ukai.NodeID {
	ids := make([]ukai.NodeID, len(nodes))
	for i, n := range nodes {
		ids[i] = p.nodes[n].ID
	}
	return ids
}

// find returns the known ones of some nodes, by name and each once.
func (p *Planner) find(ids []ukai.NodeID) []int {
	list := make([]int, 0, len(ids))
	for _, id := range ids {
		if i, ok := p.index[id]; ok {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
