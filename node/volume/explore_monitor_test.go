package volume

// xMonitor is the set of what may be so: the current value, the writes that may still take effect, and those that must
// not any more.
type xMonitor [4]uint64

func xMay(value, pending, dead uint8) uint8 { return value | pending<<2 | dead<<5 }

func (m *xMonitor) has(c uint8) bool { return m[c>>6]>>(c&63)&1 == 1 }

func (m *xMonitor) add(c uint8) { m[c>>6] |= 1 << (c & 63) }

func (m *xMonitor) empty() bool { return *m == xMonitor{} }

func (m *xMonitor) all() []uint8 {
	var list []uint8
	for c := range 256 {
		if m[c>>6] == 0 {
			continue
		}
		if m.has(uint8(c)) {
			list = append(list, uint8(c))
		}
	}
	return list
}

// closure adds what is so once any of the pending writes have taken effect, in any order.
func (m *xMonitor) closure() xMonitor {
	out := *m
	for work := m.all(); len(work) > 0; {
		c := work[len(work)-1]
		work = work[:len(work)-1]
		for v := uint8(1); v <= 3; v++ {
			if pending := c >> 2 & 7; pending>>(v-1)&1 == 1 {
				if n := xMay(v, pending&^(1<<(v-1)), c>>5); !out.has(n) {
					out.add(n)
					work = append(work, n)
				}
			}
		}
	}
	return out
}

func (m *xMonitor) filter(keep func(c uint8) (uint8, bool)) {
	var out xMonitor
	for _, c := range m.all() {
		if n, ok := keep(c); ok {
			out.add(n)
		}
	}
	*m = out
}

// invoke begins a write. One by a deposed holder must never take effect.
func (w *xWorld) invoke(v uint8, deposed bool) {
	bit := uint8(1) << (v - 1)
	w.monitor.filter(func(c uint8) (uint8, bool) {
		if deposed {
			return c | bit<<5, true
		}
		return c | bit<<2, true
	})
	if !deposed {
		w.since |= 1 << v
		for h := range w.host {
			if w.host[h].flushing {
				w.host[h].flushSince |= 1 << v
			}
		}
	}
}

// acknowledged ends a write: it has taken effect.
func (w *xWorld) acknowledged(v uint8) {
	m := w.monitor.closure()
	m.filter(func(c uint8) (uint8, bool) { return c, c>>2>>(v-1)&1 == 0 && c>>5>>(v-1)&1 == 0 })
	w.monitor = m
}

// sees is a read.
func (w *xWorld) sees(v uint8) {
	m := w.monitor.closure()
	m.filter(func(c uint8) (uint8, bool) { return c, c&3 == v })
	w.monitor = m
}

// activated settles the writes of older epochs: they have taken effect, or never will. A lossy recovery may bring back
// whatever was current since the last flush.
func (w *xWorld) activated(lossy bool) {
	m := w.monitor.closure()
	if lossy {
		var dead uint8
		for _, c := range m.all() {
			dead |= c >> 5
		}
		m = xMonitor{}
		for v := range uint8(4) {
			if w.since>>v&1 == 1 {
				m.add(xMay(v, 0, 0))
			}
		}
		w.monitor = m
		return
	}
	m.filter(func(c uint8) (uint8, bool) { return xMay(c&3, 0, c>>5|c>>2&7), true })
	w.monitor = m
	w.since = w.current() // a takeover flushes
}

// current returns the values that may be current, a mask.
func (w *xWorld) current() (mask uint8) {
	m := w.monitor.closure()
	for _, c := range m.all() {
		mask |= 1 << (c & 3)
	}
	return mask
}
