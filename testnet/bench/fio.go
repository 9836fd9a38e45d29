//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// job is one workload of fio.
type job struct {
	Name  string
	Args  string
	Bulk  bool // judged by MB/s, else by IOPS
	WAN   bool // also measured with a replica far away
	Flush bool // each write is followed by fdatasync, whose time counts
}

var jobs = []job{
	{Name: "randread 4k qd1", Args: "--rw=randread --bs=4k --iodepth=1", WAN: true},
	{Name: "randread 4k qd16", Args: "--rw=randread --bs=4k --iodepth=16"},
	{Name: "randwrite 4k qd1", Args: "--rw=randwrite --bs=4k --iodepth=1", WAN: true},
	{Name: "randwrite 4k qd16", Args: "--rw=randwrite --bs=4k --iodepth=16"},
	{Name: "randwrite 4k fdatasync", Args: "--rw=randwrite --bs=4k --iodepth=1 --fdatasync=1", WAN: true, Flush: true},
	{Name: "seqread 1M qd4", Args: "--rw=read --bs=1M --iodepth=4", Bulk: true},
	{Name: "seqwrite 1M qd4", Args: "--rw=write --bs=1M --iodepth=4 --end_fsync=1", Bulk: true},
	{Name: "randrw 70/30 4k qd16", Args: "--rw=randrw --rwmixread=70 --bs=4k --iodepth=16"},
}

// sample is what one run of a job measured. Latencies are total ones (submission and completion) in microseconds.
type sample struct {
	IOPS, MBs      float64
	P50, P99, P999 float64
	CPU            float64 // microseconds of the store's processes per I/O
	Wire           float64 // bytes on the wire per byte written; 0 if not known
	RSS            float64 // MiB of the store's processes together
}

// side is one direction in fio's output.
type side struct {
	IOs     float64 `json:"total_ios"`
	Bytes   float64 `json:"io_bytes"`
	Runtime float64 `json:"runtime"` // ms
	Lat     struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

func (s side) micros(percentile string) float64 { return s.Lat.Percentile[percentile] / 1000 }

// runFio runs one job on a file of size bytes.
func runFio(ctx context.Context, file string, size int64, args ...string) (read, write, sync side, err error) {
	args = append([]string{"--name=bench", "--filename=" + file, fmt.Sprintf("--size=%d", size), "--ioengine=libaio", "--direct=1", "--allow_file_create=0",
		"--randrepeat=0", "--norandommap", "--group_reporting", "--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50:99:99.9", "--output-format=json"}, args...)
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return read, write, sync, fmt.Errorf("fio %s: %w: %s%s", strings.Join(args, " "), err, stderr.String(), out)
	}
	var report struct {
		Jobs []struct {
			Read, Write, Sync side
			Error             int
		}
	}
	text := string(out)
	if err := json.Unmarshal([]byte(text[max(0, strings.IndexByte(text, '{')):]), &report); err != nil || len(report.Jobs) != 1 {
		return read, write, sync, fmt.Errorf("fio's report: %w: %s", err, text)
	}
	j := report.Jobs[0]
	if j.Error != 0 {
		return read, write, sync, fmt.Errorf("fio reports error %d", j.Error)
	}
	return j.Read, j.Write, j.Sync, nil
}

// prewrite fills the file with random data: reads of holes would be faster than those of data.
func prewrite(ctx context.Context, file string, size int64) error {
	_, _, _, err := runFio(ctx, file, size, "--rw=write", "--bs=1M", "--iodepth=4", "--refill_buffers", "--end_fsync=1")
	return err
}

// measure runs one job on a target.
func measure(ctx context.Context, t *target, j job, size int64, seconds int) (s sample, err error) {
	cpu, wire := cpuTime(t.pids()), t.sent()
	read, write, sync, err := runFio(ctx, t.file, size, append(strings.Fields(j.Args), "--time_based", fmt.Sprintf("--runtime=%d", seconds))...)
	if err != nil {
		return s, err
	}
	ios, bytes := read.IOs+write.IOs, read.Bytes+write.Bytes
	elapsed := max(read.Runtime, write.Runtime) / 1000
	s.IOPS, s.MBs = ios/elapsed, bytes/elapsed/1e6
	lat := read
	switch {
	case j.Flush:
		lat = sync // fio counts it from the submission of the write before it, which it has to wait for
	case read.IOs == 0:
		lat = write
	}
	s.P50, s.P99, s.P999 = lat.micros("50.000000"), lat.micros("99.000000"), lat.micros("99.900000")
	s.CPU = float64((cpuTime(t.pids()) - cpu).Microseconds()) / ios
	s.RSS = residentMiB(t.pids())
	if write.Bytes > 0 && t.sent() > wire {
		s.Wire = float64(t.sent()-wire) / write.Bytes
	}
	return s, nil
}
