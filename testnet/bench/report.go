//go:build linux

package main

import (
	"fmt"
	"html"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// results are the samples of one run of the program.
type results struct {
	When, Machine string
	Seconds       int
	SizeMiB       int64
	RTT           time.Duration
	Versions      []string
	Targets       []string // in the order of the tables
	Samples       map[string]map[string][]sample
	Stream        []float64 // MB/s of a raw QUIC stream
	Rest          map[string]rest
}

// rest is what an idle node takes on average.
type rest struct {
	Core, MiB float64
	Nodes     int
}

func newResults(o options) *results {
	return &results{When: time.Now().UTC().Format("2006-01-02"), Machine: machine(), Versions: versions(o), Seconds: o.seconds, SizeMiB: o.size >> 20, RTT: o.rtt,
		Samples: map[string]map[string][]sample{}, Rest: map[string]rest{}}
}

func installed(tool string) bool { _, err := exec.LookPath(tool); return err == nil }

func machine() string {
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var system unix.Utsname
	kernel := "unknown"
	if unix.Uname(&system) == nil {
		kernel = unix.ByteSliceToString(system.Release[:])
	}
	var memory unix.Sysinfo_t
	_ = unix.Sysinfo(&memory) // zero then
	return fmt.Sprintf("%d x %s, %d GiB, Linux %s, %s", runtime.NumCPU(), model, (memory.Totalram*uint64(memory.Unit)+1<<29)>>30, kernel, runtime.Version())
}

// versions lists the first lines of what the programs say of themselves.
func versions(o options) (list []string) {
	commands := [][]string{{o.bin, "version"}, {"fio", "--version"}}
	if o.peers {
		commands = append(commands, []string{"glusterfs", "--version"}, []string{"qemu-storage-daemon", "--version"}, []string{"nbdkit", "--version"})
	}
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).Output(); err == nil {
			line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			list = append(list, line)
		}
	}
	return list
}

func (r *results) add(target, job string, s sample) {
	if r.Samples[target] == nil {
		r.Samples[target] = map[string][]sample{}
		r.Targets = append(r.Targets, target)
	}
	r.Samples[target][job] = append(r.Samples[target][job], s)
}

func median(values []float64) float64 {
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// of returns the median of one figure; ok is false if it was not measured.
func (r *results) of(target, job string, figure func(sample) float64) (v float64, ok bool) {
	samples := r.Samples[target][job]
	if len(samples) == 0 {
		return 0, false
	}
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = figure(s)
	}
	return median(values), true
}

// speed is what a job is judged by.
func (j job) speed(s sample) float64 {
	if j.Bulk {
		return s.MBs
	}
	return s.IOPS
}

// measured lists the jobs that ran.
func (r *results) measured() (list []job) {
	for _, j := range jobs {
		if slices.ContainsFunc(r.Targets, func(t string) bool { return len(r.Samples[t][j.Name]) > 0 }) {
			list = append(list, j)
		}
	}
	return list
}

// table writes one row per target and one column per job.
func (r *results) table(b *strings.Builder, title string, cell func(target string, j job) string) {
	list := r.measured()
	fmt.Fprintf(b, "\n%s\n\n| |", title)
	for _, j := range list {
		fmt.Fprintf(b, " %s |", j.Name)
	}
	b.WriteString("\n|---" + strings.Repeat("|--:", len(list)) + "|\n")
	for _, t := range r.Targets {
		fmt.Fprintf(b, "| %s |", t)
		for _, j := range list {
			text := "-"
			if len(r.Samples[t][j.Name]) > 0 {
				text = cell(t, j)
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteString("\n")
	}
}

func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s: %s; %s. Disk of %d MiB, filled with random data; %d s per run; medians, runs of all targets in turn.\n",
		r.When, r.Machine, strings.Join(r.Versions, ", "), r.SizeMiB, r.Seconds)
	r.table(&b, "**IOPS (or MB/s of 1M jobs), and in parentheses the ratio to the FUSE pass-through**", func(t string, j job) string {
		v, _ := r.of(t, j.Name, j.speed)
		floor, ok := r.of(namePass, j.Name, j.speed)
		if !ok || t == namePass {
			return fmt.Sprintf("%.0f", v)
		}
		return fmt.Sprintf("%.0f (%.2f)", v, v/floor)
	})
	r.table(&b, "**Latency p50 / p99 / p99.9 in us** (of reads in the mixed job; with fdatasync from the submission of the write to the end of the sync)", func(t string, j job) string {
		p50, _ := r.of(t, j.Name, func(s sample) float64 { return s.P50 })
		p99, _ := r.of(t, j.Name, func(s sample) float64 { return s.P99 })
		p999, _ := r.of(t, j.Name, func(s sample) float64 { return s.P999 })
		return fmt.Sprintf("%.0f / %.0f / %.0f", p50, p99, p999)
	})
	r.table(&b, "**CPU of the store's processes in us per I/O, and bytes sent by QUIC per byte written**", func(t string, j job) string {
		cpu, _ := r.of(t, j.Name, func(s sample) float64 { return s.CPU })
		if t == nameFile {
			return "-"
		}
		if wire, _ := r.of(t, j.Name, func(s sample) float64 { return s.Wire }); wire > 0 {
			return fmt.Sprintf("%.0f; %.2f", cpu, wire)
		}
		return fmt.Sprintf("%.0f", cpu)
	})
	if len(r.Stream) > 0 {
		fmt.Fprintf(&b, "\nOne raw QUIC stream between two processes, in turn with the sequential writes: %.0f MB/s.", median(slices.Clone(r.Stream)))
	}
	for _, label := range slices.Sorted(func(yield func(string) bool) {
		for label := range r.Rest {
			if !yield(label) {
				return
			}
		}
	}) {
		at := r.Rest[label]
		fmt.Fprintf(&b, "\nAt rest a node of the mesh \"%s\" (%d nodes) takes %.1f %% of a core and %.0f MiB.", label, at.Nodes, at.Core*100, at.MiB)
	}
	if slices.ContainsFunc(r.Targets, func(t string) bool { return strings.HasPrefix(t, nameFar) }) {
		fmt.Fprintf(&b, "\n\"Far away\" is a round trip of %v.", r.RTT)
	}
	return b.String() + "\n"
}

// replaceTable puts text between the marks of a document that the make target writes to.
func replaceTable(path, target, text string) error {
	begin, end := fmt.Sprintf("<!-- written by make %s: begin -->\n", target), fmt.Sprintf("<!-- written by make %s: end -->\n", target)
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the lines %q and %q", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644)
}

var colours = []string{"#888888", "#4c72b0", "#c44e52", "#dd8452", "#8172b3", "#55a868", "#937860", "#da8bc3"}

// svg draws the speeds as ratios to the pass-through, one group of bars per job.
func (r *results) svg() string {
	const bar, gap, left, width, full = 13, 16, 190, 540, 1.5 // full: the ratio at the right end
	var b strings.Builder
	y := 30 + 16*len(r.Targets)
	for i, t := range r.Targets {
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", left, 22+16*i, colours[i%len(colours)], left+16, 31+16*i, html.EscapeString(t))
	}
	for _, j := range r.measured() {
		floor, ok := r.of(namePass, j.Name, j.speed)
		if !ok {
			continue
		}
		y += gap
		top := y
		for i, t := range r.Targets {
			v, ok := r.of(t, j.Name, j.speed)
			if !ok {
				continue
			}
			length := max(1, width*min(v/floor, full)/full)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d">%.2f</text>`+"\n",
				left, y, length, bar-2, colours[i%len(colours)], left+length+4, y+bar-3, v/floor)
			y += bar
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, (top+y)/2+4, html.EscapeString(j.Name))
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">
<rect width="100%%" height="100%%" fill="white"/>
<text x="%d" y="14" font-size="13">Speed as a ratio to the FUSE pass-through (bars end at %.1f)</text>
%s<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#444" stroke-dasharray="3,3"/>
</svg>
`, left+width+60, y+20, left, float64(full), b.String(), left+int(width/full), 30+16*len(r.Targets), left+int(width/full), y)
}
