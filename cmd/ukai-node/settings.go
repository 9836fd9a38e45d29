package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ukai"
	"ukai/node/volume"
)

// Where things are unless they are set otherwise.
const (
	defaultConfig = "/etc/ukai/ukai.yaml"
	defaultData   = "/var/lib/ukai"
	defaultMount  = "/ukai"
	defaultSocket = "/run/ukai/ukai.sock"
	defaultPort   = "7946"
)

// config is what `start` and `mesh` are told, by the command line, the environment and the configuration file.
type config struct {
	Name           string
	Labels         ukai.Labels
	Witness        bool
	Listen         string
	Advertise      string
	Seeds          []string
	SeedFile       string
	Data           string
	Mount          string // "": disks are not mounted
	MountMode      os.FileMode
	MountOwner     string
	RequireLocks   bool
	RefuseTruncate bool
	Socket         string
	MeshKey        string
	MeshKeyFile    string
	Reserve        int64
	OnLossTimeout  time.Duration
	ScrubEvery     time.Duration // negative: only when asked
	ScrubRate      int64         // bytes a second
	LogLevel       slog.Level
	LogFormat      string
	Pprof          bool
}

// setting is one thing that can be configured. Its key names it in the file; its flag is the key unless flag is set; its variable is
// UKAI_ and the key in capitals.
type setting struct {
	key     string
	flag    string // "-": there is no flag
	kind    kind
	unset   string // shown as the value that holds when it is not set
	usage   string
	example string // for the sample file, as YAML
	set     func(c *config, values []string) error
}

// kind says how a setting is written.
type kind int

const (
	single kind = iota
	yesNo
	list  // several values: a flag may be repeated or have commas
	pairs // several key=value
)

func (s setting) flagName() string {
	if s.flag != "" {
		return s.flag
	}
	return s.key
}

func (s setting) variable() string {
	return "UKAI_" + strings.ToUpper(strings.ReplaceAll(s.key, "-", "_"))
}

// settings returns all settings, in the order in which they are documented.
func settings() []setting {
	return []setting{
		{key: "name", usage: "`NAME` of this node, unique in the mesh", unset: "the host name up to its first dot", example: "t1",
			set: one(func(c *config, v string) error { c.Name = v; return ukai.CheckName("node", v) })},
		{key: "labels", flag: "label", kind: pairs, usage: "label `KEY=VALUE` of this node; dc names its datacenter", unset: "none", example: "{dc: tokyo, rack: r1}",
			set: setLabels},
		{key: "witness", kind: yesNo, usage: "store no blocks, only vote: for a third place that breaks ties", unset: "no", example: "false",
			set: flagged(func(c *config, v bool) { c.Witness = v })},
		{key: "listen", usage: "UDP `HOST:PORT` to listen on", unset: ":" + defaultPort, example: `":7946"`,
			set: one(func(c *config, v string) (err error) { c.Listen, err = address(v, false); return err })},
		{key: "advertise", usage: "`HOST:PORT` at which other nodes reach this one, if they see another address than this machine does", unset: "found out", example: "203.0.113.5:7946",
			set: one(func(c *config, v string) (err error) { c.Advertise, err = address(v, true); return err })},
		{key: "seeds", flag: "seed", kind: list, usage: "`HOST[:PORT]` of a node, or a DNS name of several, through which to join", unset: "none: begin a mesh of its own", example: "[10.0.0.2:7946, 10.0.0.3:7946]",
			set: setSeeds},
		{key: "seed-file", usage: "`FILE` with more seeds, one a line; # begins a comment", unset: "none", example: "/etc/ukai/seeds",
			set: one(func(c *config, v string) error { c.SeedFile = v; return nil })},
		{key: "data", usage: "`DIR` for blocks and knowledge about them, on a file system of its own if possible", unset: defaultData, example: defaultData,
			set: one(func(c *config, v string) error { c.Data = v; return nil })},
		{key: "mount", usage: "`DIR` in which disks appear as files; none: do not mount", unset: defaultMount, example: defaultMount,
			set: one(func(c *config, v string) error {
				if c.Mount = v; v == "none" {
					c.Mount = ""
				}
				return nil
			})},
		{key: "mount-owner", usage: "`USER[:GROUP]` that owns the files of disks, by name or number", unset: "the user that runs the node", example: "libvirt-qemu:kvm",
			set: one(func(c *config, v string) error { c.MountOwner = v; _, _, err := owner(v); return err })},
		{key: "mount-mode", usage: "permissions of the files of disks, in octal `MODE`", unset: "0600", example: `"0660"`,
			set: one(setMountMode)},
		{key: "require-locks", kind: yesNo, usage: "refuse writes of programs that hold none of the locks that QEMU takes on its images", unset: "no", example: "false",
			set: flagged(func(c *config, v bool) { c.RequireLocks = v })},
		{key: "refuse-truncate", kind: yesNo, usage: "refuse to open a disk that has data for overwriting from the start, as cp and > do, instead of keeping what they skip", unset: "no", example: "false",
			set: flagged(func(c *config, v bool) { c.RefuseTruncate = v })},
		{key: "socket", flag: "-", usage: "unix socket of the admin API, for this and all other commands", unset: defaultSocket, example: defaultSocket,
			set: one(func(c *config, v string) error { c.Socket = v; return checkSocket(v) })},
		{key: "mesh-key-file", usage: "`FILE` with the mesh key; with several, one a line, the first is used to send and all are accepted", unset: "mesh.key in the data directory", example: "/etc/ukai/mesh.key",
			set: one(func(c *config, v string) error { c.MeshKeyFile = v; return nil })},
		{key: "mesh-key", flag: "-", usage: "the mesh key itself; not on the command line, where every user of the machine could read it", unset: "none", example: "ukai1-...",
			set: one(func(c *config, v string) error { c.MeshKey = v; return nil })},
		{key: "reserve", usage: "`SIZE` that blocks never take of the file system of the data directory", unset: "5 % of it, at most 10 GiB", example: "10G",
			set: one(func(c *config, v string) (err error) { c.Reserve, err = parseSize(v); return err })},
		{key: "on-loss-timeout", usage: "with --on-loss error, how long I/O of a disk waits for replicas before it fails, as `DURATION`", unset: volume.DefaultLossLimit.String(), example: "30s",
			set: one(setOnLossTimeout)},
		{key: "scrub-every", usage: "how often each disk that this node looks after is read, compared and repaired, as `DURATION`; 0: only when asked", unset: "720h", example: "720h",
			set: one(setScrubEvery)},
		{key: "scrub-rate", usage: "`SIZE` a second of each replica that such a scrub reads at most", unset: "20M", example: "20M",
			set: one(setScrubRate)},
		{key: "log-level", usage: "least `LEVEL` of what is logged: debug, info, warn or error", unset: "info", example: "info",
			set: one(setLogLevel)},
		{key: "log-format", usage: "text or json, as `FORMAT` of the log on standard error", unset: "text", example: "text",
			set: one(setLogFormat)},
		{key: "pprof", kind: yesNo, usage: "serve profiles of the running node at /debug/pprof of the admin API; they may show secrets", unset: "no", example: "false",
			set: flagged(func(c *config, v bool) { c.Pprof = v })},
	}
}

// one is the set of a setting that has a single value.
func one(set func(*config, string) error) func(*config, []string) error {
	return func(c *config, values []string) error {
		if len(values) != 1 || values[0] == "" {
			return fmt.Errorf("%w: want one value", ukai.ErrInvalid)
		}
		return set(c, values[0])
	}
}

// flagged is the set of a setting that is yes or no.
func flagged(set func(*config, bool)) func(*config, []string) error {
	return one(func(c *config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q: %w: write true or false", v, ukai.ErrInvalid)
		}
		set(c, b)
		return nil
	})
}

func setLabels(c *config, values []string) error {
	c.Labels = ukai.Labels{}
	for _, v := range values {
		key, value, err := ukai.ParseLabel(v)
		if err != nil {
			return err
		}
		if old, ok := c.Labels[key]; ok && old != value {
			return fmt.Errorf("label %s: %w: both %s and %s; a key has one value", key, ukai.ErrInvalid, old, value)
		}
		c.Labels[key] = value
	}
	if len(c.Labels) > ukai.MaxLabels {
		return fmt.Errorf("%d labels: %w: at most %d", len(c.Labels), ukai.ErrInvalid, ukai.MaxLabels)
	}
	return nil
}

// maxSeeds bounds the list of seeds: one that answers is enough.
const maxSeeds = 256

func setSeeds(c *config, values []string) error {
	c.Seeds = nil
	for _, v := range values {
		seed, err := address(v, true)
		if err != nil {
			return err
		}
		if !slices.Contains(c.Seeds, seed) {
			c.Seeds = append(c.Seeds, seed)
		}
	}
	if len(c.Seeds) > maxSeeds {
		return fmt.Errorf("%d seeds: %w: at most %d; one that answers is enough", len(c.Seeds), ukai.ErrInvalid, maxSeeds)
	}
	return nil
}

var hostRule = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9.])?$`)

// address checks "host:port" and adds the default port where there is none. Without mustHost the host may be empty: all addresses.
func address(v string, mustHost bool) (string, error) {
	const remedy = "write HOST:PORT, for example 10.0.0.2:7946 or [2001:db8::2]:7946"
	wrong := func(why string) (string, error) {
		return "", fmt.Errorf("address %q: %w: %s; %s", v, ukai.ErrInvalid, why, remedy)
	}
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		if ip := net.ParseIP(strings.Trim(v, "[]")); ip != nil {
			return net.JoinHostPort(ip.String(), defaultPort), nil
		}
		if strings.Contains(v, ":") {
			return wrong("host and port cannot be told apart")
		}
		host, port = v, defaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && mustHost {
		return wrong("the port is not a number from 1 to 65535")
	}
	switch {
	case host == "" && mustHost:
		return wrong("there is no host")
	case host != "" && strings.Trim(host, "0123456789.") == "" && net.ParseIP(host) == nil:
		return wrong("the host is a number")
	case host != "" && net.ParseIP(host) == nil && !hostRule.MatchString(host) && !isZoned(host):
		return wrong("the host is neither a name nor an IP address")
	}
	return net.JoinHostPort(host, port), nil
}

// isZoned says whether host is a link-local IPv6 address with its interface: fe80::1%eth0.
func isZoned(host string) bool {
	ip, zone, ok := strings.Cut(host, "%")
	return ok && net.ParseIP(ip) != nil && hostRule.MatchString(zone)
}

func setMountMode(c *config, v string) error {
	mode, err := strconv.ParseUint(strings.TrimPrefix(v, "0o"), 8, 32)
	if err != nil || mode > 0o777 || mode&0o111 != 0 {
		return fmt.Errorf("mode %q: %w: write read and write permissions in octal, for example 0660", v, ukai.ErrInvalid)
	}
	c.MountMode = os.FileMode(mode)
	return nil
}

func setOnLossTimeout(c *config, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 || d > 24*time.Hour {
		return fmt.Errorf("duration %q: %w: write for example 30s or 5m, more than 0 and at most 24h", v, ukai.ErrInvalid)
	}
	c.OnLossTimeout = d
	return nil
}

func setScrubEvery(c *config, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > 0 && d < time.Hour {
		return fmt.Errorf("duration %q: %w: write for example 720h, at least 1h, or 0 for never", v, ukai.ErrInvalid)
	}
	if c.ScrubEvery = d; d == 0 {
		c.ScrubEvery = -1
	}
	return nil
}

func setScrubRate(c *config, v string) (err error) {
	if c.ScrubRate, err = parseSize(v); err == nil && c.ScrubRate < 64<<10 {
		err = fmt.Errorf("rate %s a second: %w: at least 64K", v, ukai.ErrInvalid)
	}
	return err
}

func setLogLevel(c *config, v string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[strings.ToLower(v)]
	if !ok {
		return fmt.Errorf("log level %q: %w: debug, info, warn or error", v, ukai.ErrInvalid)
	}
	c.LogLevel = level
	return nil
}

func setLogFormat(c *config, v string) error {
	if v != "text" && v != "json" {
		return fmt.Errorf("log format %q: %w: text or json", v, ukai.ErrInvalid)
	}
	c.LogFormat = v
	return nil
}

// socketSuffix is on the name of the socket until its permissions are right.
const socketSuffix = ".new"

// maxSocketPath is how long the path of a unix socket may be on Linux, less the suffix.
const maxSocketPath = 107 - len(socketSuffix)

func checkSocket(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket %q: %w: %d bytes; the path of a unix socket has at most %d", path, ukai.ErrInvalid, len(path), maxSocketPath)
	}
	return nil
}
