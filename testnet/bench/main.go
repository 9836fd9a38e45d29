//go:build linux

// Bench measures the data path of UKAI against the bounds of this machine and against other stores, side by side: real processes,
// real mounts, fio. Absolute figures drift from hour to hour on shared machines, so everything is repeated in turn - job by job,
// one target after the other - and judged by the ratio of medians. It needs root, /dev/fuse and fio, and is started by `make bench`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"ukai/fusefs/passthrough"
)

// The targets, by the names in tables.
const (
	nameFile     = "plain file"
	namePass     = "FUSE pass-through"
	nameUKAI     = "UKAI"
	nameAll      = "UKAI, ack=all"
	nameDiskless = "UKAI, no replica here"
	nameFar      = "UKAI, a replica far away"
	nameFarAll   = "UKAI, a replica far away, ack=all"
	nameGluster  = "GlusterFS replica 2"
	nameQuorum   = "QEMU quorum over NBD"
)

// What the program is told to be by its first argument.
const (
	servePassThrough = "serve-passthrough"
	serveStreamSink  = "serve-stream-sink"
)

// servingProcs is GOMAXPROCS of the pass-through: as ukai-node has at least.
const servingProcs = 8

type options struct {
	seconds, repeat, port   int
	size                    int64
	rtt, rest               time.Duration
	bin, base, dir          string
	peers, failover         bool
	copies, scale           bool
	disks                   int
	jobs, targets           *regexp.Regexp
	doc, plot, raw, profile string
}

func (o options) wanted(name string) bool { return o.targets.MatchString(name) }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 4 {
		switch os.Args[1] {
		case servePassThrough:
			return serve(ctx, os.Args[2], os.Args[3])
		case serveStreamSink:
			return serveSink(ctx, os.Args[2], os.Args[3])
		}
	}
	o, err := parse()
	if err != nil {
		return err
	}
	switch {
	case o.failover:
		return failover(ctx, o)
	case o.scale:
		return scale(ctx, o)
	case o.copies:
		return beside(ctx, o)
	}
	r, err := bench(ctx, o)
	if err != nil {
		return err
	}
	return r.write(o)
}

func parse() (o options, err error) {
	var sizeMiB int64
	var jobsText, targetsText string
	flag.IntVar(&o.seconds, "seconds", 4, "time of each run")
	flag.IntVar(&o.repeat, "repeat", 3, "runs of each job on each target; tables show medians")
	flag.Int64Var(&sizeMiB, "size", 1024, "size of the disk in MiB")
	flag.DurationVar(&o.rtt, "rtt", 20*time.Millisecond, "round trip to the replica that is far away")
	flag.DurationVar(&o.rest, "rest", 20*time.Second, "for how long the idle mesh is watched")
	flag.StringVar(&o.bin, "bin", "bin/ukai-node", "the ukai-node to measure")
	flag.StringVar(&o.base, "base", "", "another ukai-node to measure beside it")
	flag.StringVar(&o.dir, "dir", "run/bench", "directory for data; what counts is the disk under it")
	flag.IntVar(&o.port, "port", 20400, "first of the UDP ports on loopback, of which ten are used")
	flag.BoolVar(&o.peers, "peers", false, "measure GlusterFS and QEMU's quorum driver too, as far as they are installed")
	flag.BoolVar(&o.failover, "failover", false, "measure pauses, takeover and resync in place of throughput")
	flag.BoolVar(&o.scale, "scale", false, "measure many disks and a huge one in place of throughput")
	flag.IntVar(&o.disks, "disks", 1000, "how many are many")
	flag.BoolVar(&o.copies, "copies", false, "measure what a guest feels of a relocation of its disk, in place of throughput")
	flag.StringVar(&jobsText, "jobs", "", "regular expression: only these jobs")
	flag.StringVar(&targetsText, "targets", "", "regular expression: only these targets")
	flag.StringVar(&o.doc, "doc", "", "document whose table is replaced; empty: tables go to standard output only")
	flag.StringVar(&o.plot, "plot", "", "SVG file for the plot")
	flag.StringVar(&o.raw, "raw", "", "JSON file for all samples")
	flag.StringVar(&o.profile, "profile", "", "directory for CPU profiles of the nodes, taken while the jobs run")
	flag.Parse()
	o.size = sizeMiB << 20
	var errJobs, errTargets, errBin, errBase, errDir error
	o.jobs, errJobs = regexp.Compile(jobsText)
	o.targets, errTargets = regexp.Compile(targetsText)
	o.bin, errBin = filepath.Abs(o.bin)
	if o.base != "" {
		o.base, errBase = filepath.Abs(o.base)
	}
	o.dir, errDir = filepath.Abs(o.dir)
	if os.Geteuid() != 0 {
		return o, errors.New("mounts need root: run it as root, or with sudo")
	}
	return o, errors.Join(errJobs, errTargets, errBin, errBase, errDir)
}

// serve is the process behind the pass-through.
func serve(ctx context.Context, dir, backing string) error {
	runtime.GOMAXPROCS(max(servingProcs, runtime.GOMAXPROCS(0)))
	f, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := passthrough.Open(dir, f)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return errors.Join(m.Close(), f.Close())
}

// bench sets everything up, measures, and takes everything down.
func bench(ctx context.Context, o options) (r *results, err error) {
	if err := errors.Join(os.RemoveAll(o.dir), os.MkdirAll(o.dir, 0o700)); err != nil {
		return nil, err
	}
	r = newResults(o)
	var targets []*target
	meshes := map[string]*mesh{}
	defer func() {
		for _, t := range targets {
			err = errors.Join(err, t.close())
		}
		for _, m := range meshes {
			err = errors.Join(err, m.close())
		}
		err = errors.Join(err, os.RemoveAll(o.dir))
	}()
	add := func(t *target, err error) error {
		if err == nil {
			targets = append(targets, t)
		}
		return err
	}
	if o.wanted(nameFile) {
		if err := add(plainFile(o.dir, o.size)); err != nil {
			return nil, err
		}
	}
	if o.wanted(namePass) {
		if err := add(passThrough(ctx, o.dir, o.size)); err != nil {
			return nil, err
		}
	}
	binaries := []struct{ label, bin string }{{"", o.bin}}
	if o.base != "" {
		binaries = append(binaries, struct{ label, bin string }{" base", o.base})
	}
	for i, b := range binaries {
		if o.wanted(nameUKAI) || o.wanted(nameAll) || o.wanted(nameDiskless) {
			m, list, err := local(ctx, o, b.label, b.bin, filepath.Join(o.dir, "near"+b.label), o.port+3*i)
			if err != nil {
				return nil, err
			}
			meshes["near"+b.label] = m
			targets = append(targets, list...)
		}
		if o.wanted(nameFar) || o.wanted(nameFarAll) {
			m, list, err := farAway(ctx, o, b.label, b.bin, filepath.Join(o.dir, "far"+b.label))
			if err != nil {
				return nil, err
			}
			meshes["far"+b.label] = m
			targets = append(targets, list...)
		}
	}
	if o.peers {
		for _, p := range []struct {
			name, tool string
			open       func(context.Context, string, int64) (*target, error)
		}{{nameGluster, "glusterd", gluster}, {nameQuorum, "qemu-storage-daemon", quorum}} {
			if !o.wanted(p.name) || !installed(p.tool) {
				continue
			}
			if err := add(p.open(ctx, filepath.Join(o.dir, p.tool), o.size)); err != nil {
				return nil, err
			}
		}
	}
	if o.rest > 0 {
		for label, m := range meshes {
			core, mib, err := atRest(ctx, m.pids(), o.rest)
			if err != nil {
				return nil, err
			}
			r.Rest[label] = rest{Core: core, MiB: mib, Nodes: len(m.nodes)}
		}
	}
	return r, r.measureAll(ctx, o, targets)
}

// measureAll runs the jobs, in turn on all targets.
func (r *results) measureAll(ctx context.Context, o options, targets []*target) (err error) {
	for _, t := range targets {
		progress("prewrite %s", t.name)
		if err := prewrite(ctx, t.file, o.size); err != nil {
			return fmt.Errorf("prewrite %s: %w", t.name, err)
		}
	}
	for _, j := range jobs {
		if !o.jobs.MatchString(j.Name) {
			continue
		}
		for round := range o.repeat {
			for _, t := range targets {
				if t.far && !j.WAN {
					continue
				}
				if err := settleDisk(o.dir); err != nil {
					return err
				}
				profiled := func() error { return nil }
				if round == 0 {
					if profiled, err = profiles(ctx, o, t, j); err != nil {
						return err
					}
				}
				s, err := measure(ctx, t, j, o.size, o.seconds)
				if err = errors.Join(err, profiled()); err != nil {
					return fmt.Errorf("%s on %s: %w", j.Name, t.name, err)
				}
				progress("%-24s %-28s %8.0f IOPS %7.1f MB/s  p50 %6.0f  p99 %6.0f us  %5.0f us CPU per I/O", j.Name, t.name, s.IOPS, s.MBs, s.P50, s.P99, s.CPU)
				r.add(t.name, j.Name, s)
			}
			if j.Bulk && strings.Contains(j.Args, "rw=write") {
				speed, err := rawStream(ctx, o.port+9, time.Duration(o.seconds)*time.Second)
				if err != nil {
					return err
				}
				progress("%-24s %-28s %8s      %7.1f MB/s", j.Name, "raw QUIC stream", "", speed)
				r.Stream = append(r.Stream, speed)
			}
		}
	}
	return nil
}

// profiles takes a CPU profile of every node behind a target, until the returned function returns.
func profiles(ctx context.Context, o options, t *target, j job) (stop func() error, err error) {
	if o.profile == "" || t.mesh == nil {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(o.profile, 0o700); err != nil {
		return nil, err
	}
	var running []chan error
	for _, n := range t.mesh.nodes {
		done := make(chan error, 1)
		path := filepath.Join(o.profile, strings.NewReplacer(" ", "-", "/", "-", ",", "").Replace(fmt.Sprintf("%s %s %s.prof", j.Name, t.name, n.name)))
		go func() { done <- n.profile(ctx, o.seconds, path) }()
		running = append(running, done)
	}
	return func() error {
		var errs []error
		for _, done := range running {
			errs = append(errs, <-done)
		}
		return errors.Join(errs...)
	}, nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// write leaves the results where they were asked for.
func (r *results) write(o options) error {
	text := r.markdown()
	fmt.Print(text)
	var errs []error
	if o.raw != "" {
		data, err := json.MarshalIndent(r, "", " ")
		errs = append(errs, err, os.WriteFile(o.raw, data, 0o600))
	}
	if o.plot != "" {
		errs = append(errs, os.WriteFile(o.plot, []byte(r.svg()), 0o644))
	}
	if o.doc != "" {
		errs = append(errs, replaceTable(o.doc, "bench", text))
	}
	return errors.Join(errs...)
}
