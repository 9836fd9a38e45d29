//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc; it is the same on every Linux.
const clockTick = time.Second / 100

// cpuTime adds up what processes have used so far; those that are gone count for nothing.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, field := range fields[11:13] {
			if ticks, err := strconv.ParseInt(field, 10, 64); err == nil {
				sum += time.Duration(ticks) * clockTick
			}
		}
	}
	return sum
}

// residentMiB adds up the memory of processes.
func residentMiB(pids []int) (sum float64) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(data)); len(fields) > 1 {
			if pages, err := strconv.ParseFloat(fields[1], 64); err == nil {
				sum += pages * float64(os.Getpagesize()) / (1 << 20)
			}
		}
	}
	return sum
}
