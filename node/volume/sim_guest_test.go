package volume

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"

	"ukai"
)

// What the guests do, and the check of what they saw: per sector, by Porcupine.

type sKind uint8

const (
	sWrite sKind = iota
	sRead
	sFlush
	sLoss // not an operation: an activation after which unflushed writes may be gone
)

// sOp is one operation of a guest.
type sOp struct {
	kind     sKind
	node     int
	epoch    ukai.Epoch
	from, to int
	id       sVal   // of a write
	saw      []sVal // by a read
	call     int64
	ret      int64 // math.MaxInt64: none, or an error
}

func (w *sWorld) begin(n *sNode, h *sHold, kind sKind, from, to int) *sOp {
	o := &sOp{kind: kind, node: n.n, epoch: h.epoch, from: from, to: to, call: w.tick(), ret: math.MaxInt64}
	if kind == sWrite {
		w.ids++
		o.id = w.ids
	}
	w.ops = append(w.ops, o)
	h.ops++
	return o
}

func (w *sWorld) end(h *sHold, o *sOp, err error) {
	if err == nil {
		o.ret = w.tick()
		w.mix(uint64(o.id)<<16 | uint64(o.kind))
	}
	if w.trace != nil {
		w.note("%v: %v", o, err)
	}
	if h.ops--; h.ops == 0 {
		w.broadcast(&h.idle)
	}
}

// maxOps bounds a run: Porcupine is quick only while a sector has few operations.
const maxOps = 400

// work is one thread of a guest.
func (n *sNode) work() {
	w := n.w
	for {
		w.sleep(w.around(w.cfg.think))
		h := n.hold
		if h == nil || h.over != nil || h.closing || !n.wanted || len(w.ops) >= maxOps || w.healed && w.chance(0.9) {
			continue
		}
		from := w.rnd.IntN(sSectors)
		if w.chance(w.cfg.hot) {
			from %= sPerBlock // a block that is written again and again
		}
		to := min(sSectors, from+1+w.rnd.IntN(3))
		switch k := w.rnd.Float64(); {
		case k < w.cfg.writes:
			o := w.begin(n, h, sWrite, from, to)
			if w.cfg.zeros > 0 && w.chance(w.cfg.zeros) {
				o.id = 0 // a discard
			}
			w.end(h, o, h.write(from, to, o.id))
		case k < 0.9:
			n.readOp(h, from, to)
		default:
			o := w.begin(n, h, sFlush, 0, sSectors)
			err := h.flush()
			if err == nil {
				err = h.vouched()
			}
			w.end(h, o, err)
		}
	}
}

func (n *sNode) readOp(h *sHold, from, to int) {
	w := n.w
	o := w.begin(n, h, sRead, from, to)
	vals, err := h.read(from, to)
	o.saw = vals
	for _, v := range vals {
		w.mix(uint64(v))
	}
	w.end(h, o, err)
}

func (o *sOp) String() string {
	what := [...]string{"write", "read", "flush", "loss"}[o.kind]
	text := fmt.Sprintf("n%d epoch %v %s sectors [%d, %d)", o.node, o.epoch, what, o.from, o.to)
	switch o.kind {
	case sWrite:
		text += fmt.Sprintf(" id %d", o.id)
	case sRead:
		text += fmt.Sprintf(" saw %v", o.saw)
	}
	if o.ret == math.MaxInt64 {
		return text + fmt.Sprintf(" called %d", o.call)
	}
	return text + fmt.Sprintf(" called %d returned %d", o.call, o.ret)
}

// sActivation is when an epoch was activated, and whether writes that were not flushed may have been lost by it.
type sActivation struct {
	epoch ukai.Epoch
	at    int64
	lossy bool
}

// deadline returns when what an epoch began has taken effect, or never will: when a later epoch was activated.
func (w *sWorld) deadline(epoch ukai.Epoch) int64 {
	for _, a := range w.activations {
		if a.epoch > epoch {
			return a.at
		}
	}
	return math.MaxInt64
}

// sAccess is what an operation does to one sector.
type sAccess struct {
	kind sKind
	id   sVal
	open bool // a write of which it is not known whether it has taken effect, or will
}

// sState is what a sector holds, and all it has held since the last flush.
type sState struct {
	cur   sVal
	since string
}

func sSince(id sVal) string {
	return string([]byte{byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
}

// sRegister is a sector of a disk with a volatile cache.
var sRegister = porcupine.NondeterministicModel{
	Init: func() []any { return []any{sState{0, sSince(0)}} },
	Step: func(state, input, _ any) []any {
		s, a := state.(sState), input.(sAccess)
		switch a.kind {
		case sWrite:
			next := []any{sState{a.id, s.since + sSince(a.id)}}
			if a.open {
				next = append(next, s)
			}
			return next
		case sFlush:
			return []any{sState{s.cur, sSince(s.cur)}}
		case sLoss:
			var next []any
			for i := 0; i < len(s.since); i += 4 {
				id := sVal(s.since[i]) | sVal(s.since[i+1])<<8 | sVal(s.since[i+2])<<16 | sVal(s.since[i+3])<<24
				next = append(next, sState{id, sSince(id)})
			}
			return next
		}
		if s.cur != a.id {
			return nil
		}
		return []any{s}
	},
}

// sPlain is a sector of a disk that loses nothing.
var sPlain = porcupine.Model{
	Init: func() any { return sVal(0) },
	Step: func(state, input, _ any) (bool, any) {
		if a := input.(sAccess); a.kind == sWrite {
			return true, a.id
		} else {
			return state.(sVal) == a.id, state
		}
	},
}

// sOpen is sPlain where there are open writes.
var sOpen = porcupine.NondeterministicModel{
	Init: func() []any { return []any{sVal(0)} },
	Step: func(state, input, _ any) []any {
		switch a := input.(sAccess); {
		case a.kind == sWrite && a.open:
			return []any{a.id, state}
		case a.kind == sWrite:
			return []any{a.id}
		case state.(sVal) != a.id:
			return nil
		}
		return []any{state}
	},
}

// checkHistories checks every sector. A write without a reply counts only where somebody saw it: one that nobody saw
// constrains nothing. Strictness: it has taken effect by the next activation.
func (w *sWorld) checkHistories() {
	lossy := slices.ContainsFunc(w.activations, func(a sActivation) bool { return a.lossy })
	lossyModel, openModel := sRegister.ToModel(), sOpen.ToModel()
	seen := map[[2]sVal]bool{}
	for _, o := range w.ops {
		for i, v := range o.saw {
			seen[[2]sVal{v, sVal(o.from + i)}] = true
		}
	}
	for sector := range sSectors {
		var history []porcupine.Operation
		open := false
		for _, o := range w.ops {
			if sector < o.from || sector >= o.to {
				continue
			}
			until := w.deadline(o.epoch)
			ret, a := o.ret, sAccess{kind: o.kind, id: o.id}
			switch {
			case o.kind == sWrite && o.ret == math.MaxInt64 && o.id == 0:
				if o.call > until {
					continue
				}
				ret, a.open, open = until, true, true // others write the same, so who saw it?
			case o.kind == sWrite && o.ret == math.MaxInt64:
				if !seen[[2]sVal{o.id, sVal(sector)}] {
					continue
				}
				if ret = until; o.call > until {
					w.fail("sector %d: a write begun after the next epoch was activated took effect: %v", sector, o)
					return
				}
			case o.ret == math.MaxInt64, o.kind == sFlush && !lossy:
				continue
			case o.kind == sFlush && o.call > until:
				continue // there was nothing left to flush
			case o.kind == sWrite && o.call > until:
				w.fail("G4: acknowledged though it began after the next epoch was activated: %v", o)
				return
			case o.kind == sWrite:
				ret = min(ret, until)
			case o.kind == sFlush:
				ret = min(ret, until)
			case o.kind == sRead:
				a.id = o.saw[sector-o.from]
			}
			history = append(history, porcupine.Operation{ClientId: o.node, Input: a, Call: o.call, Return: ret})
		}
		var good bool
		if lossy {
			for _, a := range w.activations {
				if a.lossy {
					history = append(history, porcupine.Operation{Input: sAccess{kind: sLoss}, Call: a.at, Return: a.at})
				} else {
					history = append(history, porcupine.Operation{Input: sAccess{kind: sFlush}, Call: a.at, Return: a.at})
				}
			}
			good = porcupine.CheckOperations(lossyModel, history)
		} else if open {
			good = porcupine.CheckOperations(openModel, history)
		} else {
			good = porcupine.CheckOperations(sPlain, history)
		}
		if !good {
			w.fail("sector %d is not strictly linearizable", sector)
			w.tell(sector)
			return
		}
	}
}

// tell adds what happened to a sector to the trace.
func (w *sWorld) tell(sector int) {
	if w.trace == nil {
		return
	}
	var lines []string
	for _, o := range w.ops {
		if o.from <= sector && sector < o.to {
			lines = append(lines, fmt.Sprintf("%7d %v", o.call, o))
		}
	}
	for _, a := range w.activations {
		lines = append(lines, fmt.Sprintf("%7d epoch %v is activated, lossy: %v", a.at, a.epoch, a.lossy))
	}
	slices.Sort(lines)
	fmt.Fprintf(w.trace, "sector %d:\n%s\n", sector, strings.Join(lines, "\n"))
}
