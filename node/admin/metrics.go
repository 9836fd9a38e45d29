package admin

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves the backend's counters and gauges, and those of the Go runtime and the process, as Prometheus reads them.
func metrics(b Backend, log *slog.Logger) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{backend: b, log: log})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
}

// collector asks the backend when it is scraped.
type collector struct {
	backend Backend
	log     *slog.Logger

	mu      sync.Mutex
	refused map[string]bool // keys that were logged as malformed
}

// Describe describes nothing: which metrics there are is known when they are collected.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the counters and gauges of this moment.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	counters := c.backend.Counters()
	for _, key := range slices.Sorted(maps.Keys(counters)) {
		c.send(out, key, prometheus.CounterValue, float64(counters[key]))
	}
	gauges := c.backend.Gauges()
	for _, key := range slices.Sorted(maps.Keys(gauges)) {
		c.send(out, key, prometheus.GaugeValue, gauges[key])
	}
}

func (c *collector) send(out chan<- prometheus.Metric, key string, t prometheus.ValueType, v float64) {
	name, labels, err := parseMetric(key)
	if err != nil {
		c.refuse(key, err)
		return
	}
	// A counter's name ends in _total, so that Prometheus knows it for one.
	if t == prometheus.CounterValue && !strings.HasSuffix(name, "_total") {
		name += "_total"
	}
	m, err := prometheus.NewConstMetric(prometheus.NewDesc(name, help(name), nil, labels), t, v)
	if err != nil {
		c.refuse(key, err)
		return
	}
	out <- m
}

// refuse logs once that a key is left out.
func (c *collector) refuse(key string, err error) {
	c.mu.Lock()
	known := c.refused[key]
	if !known && len(c.refused) < 100 {
		if c.refused == nil {
			c.refused = map[string]bool{}
		}
		c.refused[key] = true
	}
	c.mu.Unlock()
	if !known {
		c.log.Warn("metric left out", "key", key, "err", err)
	}
}

// help is the name in words: "ukai_wire_bytes_sent_total" is "ukai wire bytes sent total".
func help(name string) string { return strings.ReplaceAll(name, "_", " ") }

var (
	metricRule = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?$`)
	labelsRule = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)=("(?:[^"\\]|\\.)*")(?:,|$)`)
)

// parseMetric splits name{key="value",...}.
func parseMetric(key string) (name string, labels prometheus.Labels, err error) {
	m := metricRule.FindStringSubmatch(key)
	if m == nil {
		return "", nil, fmt.Errorf("metric %q: want name or name{label=\"value\"}", key)
	}
	labels = prometheus.Labels{}
	for rest := m[2]; rest != ""; {
		l := labelsRule.FindStringSubmatch(rest)
		if l == nil {
			return "", nil, fmt.Errorf("metric %q: labels %q: want label=\"value\"", key, rest)
		}
		value, err := strconv.Unquote(l[2])
		if err != nil {
			return "", nil, fmt.Errorf("metric %q: label %s: %w", key, l[1], err)
		}
		labels[l[1]] = value
		rest = rest[len(l[0]):]
	}
	return m[1], labels, nil
}
