package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ukai"
)

// from returns sources of configuration: files by path, variables and flags.
func from(files map[string]string, env map[string]string, flags map[string][]string) sources {
	return sources{
		env:   func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		flags: flags,
		open: func(path string) (io.ReadCloser, error) {
			text, ok := files[path]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
			return io.NopCloser(strings.NewReader(text)), nil
		},
	}
}

func file(text string) sources { return from(map[string]string{defaultConfig: text}, nil, nil) }

func TestTheSampleParsesAsItIsAndWithEverythingTurnedOn(t *testing.T) {
	c, origins, err := load(file(sampleConfig()))
	if err != nil || len(origins) != 0 {
		t.Fatalf("as it is: %v, sets %v", err, origins)
	}
	if c.Listen != ":7946" || c.Data != defaultData || c.Mount != defaultMount || c.Socket != defaultSocket || c.MountMode != 0o600 {
		t.Errorf("defaults: %+v", c)
	}

	on := regexp.MustCompile(`(?m)^#([a-z-]+: )`).ReplaceAllString(sampleConfig(), "$1")
	// Two of the examples exclude each other, and two name things that this machine lacks.
	on = regexp.MustCompile(`(?m)^(mesh-key|seed-file|mount-owner): .*$`).ReplaceAllString(on, "")
	c, origins, err = load(file(on))
	if err != nil {
		t.Fatalf("turned on: %v", err)
	}
	if want := len(settings()) - 3; len(origins) != want {
		t.Errorf("turned on: %d settings of %d: %v", len(origins), want, origins)
	}
	if c.Name != "t1" || c.Labels["rack"] != "r1" || len(c.Seeds) != 2 || c.Reserve != 10<<30 || c.MountMode != 0o660 || c.OnLossTimeout != 30*time.Second {
		t.Errorf("turned on: %+v", c)
	}
}

func TestEachSourceWinsOverTheOneBelow(t *testing.T) {
	text := "name: file\nlisten: 10.0.0.1:1\nseeds: [a]\nmesh-key: k1\nlog-level: warn\n"
	env := map[string]string{"UKAI_LISTEN": "10.0.0.1:2", "UKAI_SEEDS": "b, c:1 b", "UKAI_NAME": "", "UKAI_LABELS": "dc=tokyo,rack=r1"}
	flags := map[string][]string{"seeds": {"d,e", "[::1]:5", "fe80::1"}, "mesh-key-file": {"/key"}}
	c, origins, err := load(from(map[string]string{defaultConfig: text}, env, flags))
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "file" || c.Listen != "10.0.0.1:2" || c.LogLevel != slog.LevelWarn || c.Labels.String() != "dc=tokyo rack=r1" {
		t.Errorf("%+v", c)
	}
	if want := []string{"d:7946", "e:7946", "[::1]:5", "[fe80::1]:7946"}; !slices.Equal(c.Seeds, want) {
		t.Errorf("seeds %v, want %v", c.Seeds, want)
	}
	if c.MeshKey != "" || c.MeshKeyFile != "/key" {
		t.Errorf("a key file by flag leaves the key of the configuration file: %q %q", c.MeshKey, c.MeshKeyFile)
	}
	if o := origins["listen"]; o.where != "UKAI_LISTEN" || o.rank != byEnvironment {
		t.Errorf("listen comes from %+v", o)
	}
	if o := origins["name"]; o.where != defaultConfig+":1: name" {
		t.Errorf("name comes from %+v", o)
	}
}

func TestSeedsComeFromAFileToo(t *testing.T) {
	c, _, err := load(from(map[string]string{"/seeds": "# ours\n10.0.0.2\n\n b:1 # second\n10.0.0.2:7946\n"}, map[string]string{"UKAI_SEED_FILE": "/seeds", "UKAI_SEEDS": "a"}, nil))
	if want := []string{"a:7946", "10.0.0.2:7946", "b:1"}; err != nil || !slices.Equal(c.Seeds, want) {
		t.Errorf("%v, %v; want %v", c.Seeds, err, want)
	}
	_, _, err = load(from(map[string]string{"/seeds": "a\n\nb:c:d\n"}, map[string]string{"UKAI_SEED_FILE": "/seeds"}, nil))
	if err == nil || !strings.Contains(err.Error(), `/seeds:3: address "b:c:d"`) {
		t.Errorf("a wrong line: %v", err)
	}
	_, _, err = load(from(nil, map[string]string{"UKAI_SEED_FILE": "/none"}, nil))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestWrongConfigurationIsRefusedWithTheLine(t *testing.T) {
	for text, says := range map[string]string{
		"seed: a":                             `:1: unknown key "seed": invalid; did you mean "seeds"?`,
		"\n\nmesh_key_file: x":                `:3: unknown key "mesh_key_file": invalid; did you mean "mesh-key-file"?`,
		"colour: red":                         `:1: unknown key "colour": invalid; keys are name, labels`,
		"name: a\nname: b":                    "name",
		"name:":                               ":1: name: invalid: there is no value",
		"name: [a]":                           ":1: name: invalid: want one value, not a list",
		"name: {a: b}":                        ":1: name: invalid: want a value, not keys with values",
		"name: -a":                            `:1: name: node name "-a": invalid`,
		"labels: {dc: tokyo, dc: osaka}":      "dc",
		"labels: [dc=tokyo, dc=osaka]":        "both tokyo and osaka",
		"labels: {node: x}":                   "reserved",
		"labels: {dc: [a]}":                   "dc",
		"witness: perhaps":                    "write true or false",
		"listen: 7946":                        "the host is a number",
		"advertise: ':7946'":                  "there is no host",
		"advertise: h:0":                      "1 to 65535",
		"seeds: ['a b_!']":                    "neither a name nor an IP address",
		"mount-mode: 777":                     "read and write permissions in octal",
		"mount-mode: 9":                       "octal",
		"mount-owner: nobody-of-that-name":    "this machine has none of that name",
		"reserve: 1.5":                        "whole number",
		"on-loss-timeout: 30":                 "write for example 30s",
		"on-loss-timeout: 1000h":              "at most 24h",
		"scrub-every: 10m":                    "at least 1h, or 0 for never",
		"scrub-rate: 1K":                      "at least 64K",
		"log-level: loud":                     "debug, info, warn or error",
		"log-format: xml":                     "text or json",
		"socket: " + strings.Repeat("x", 110): "at most 103",
		"- a":                                 "want lines of the form key: value",
		"name: a\n---\nname: b":               "one document only",
		"? [a]\n: b":                          "invalid key",
		"name: *a":                            "name",
		"mesh-key: a\nmesh-key-file: b":       "give one of them",
		"name: \"a":                           "configuration " + defaultConfig,
		strings.Repeat("#", 2<<20):            "more than 1.0 MiB",
	} {
		_, _, err := load(file(text))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60q: got %v, want an error that says %q", text, err, says)
		}
		if err != nil && !errors.Is(err, ukai.ErrInvalid) {
			t.Errorf("%.60q: %v is not an invalid configuration", text, err)
		}
	}
}

func TestAllFaultsAreToldAtOnce(t *testing.T) {
	_, _, err := load(file("witness: 7x\nlog-level: loud\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("got %v", err)
	}
}

func TestAConfigurationFileThatWasNamedMustBeThere(t *testing.T) {
	if _, _, err := load(from(nil, nil, nil)); err != nil {
		t.Errorf("no file, none named: %v", err)
	}
	s := from(nil, nil, nil)
	s.file = "/none"
	if _, _, err := load(s); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("named: %v", err)
	}
}

func TestEachSettingIsDocumentedAndHasItsOwnNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings() {
		if s.usage == "" || s.unset == "" || s.example == "" || s.set == nil {
			t.Errorf("%s: incomplete", s.key)
		}
		for _, name := range []string{s.key, s.variable(), "--" + s.flagName()} {
			if seen[name] && s.flag != "-" {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
	}
}

func TestTheOwnerOfFilesIsFoundByNameOrNumber(t *testing.T) {
	for v, want := range map[string][2]uint32{"root": {0, 0}, "0:0": {0, 0}, "root:12345": {0, 12345}, "4711:42": {4711, 42}} {
		if uid, gid, err := owner(v); err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%s: %d:%d, %v", v, uid, gid, err)
		}
	}
	for _, v := range []string{"", ":", "root:", "987654321", "root:no-such-group", "-1:0"} {
		if uid, gid, err := owner(v); err == nil {
			t.Errorf("%q: %d:%d", v, uid, gid)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(sampleConfig())
	f.Add("name: t1\nlabels: {dc: tokyo}\nseeds:\n  - a\n  - b:1\n")
	f.Add("labels:\n  dc: tokyo\n  rack: r1\nreserve: 10G\n---\n")
	f.Add("name: &a t1\nlisten: *a\n")
	f.Add("? {a: b}\n: |\n  x\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, origins, err := load(file(text))
		if err == nil && (c.Listen == "" || c.Name == "") {
			t.Errorf("%q: accepted without what a node needs: %+v", text, c)
		}
		if err == nil && len(origins) > len(settings()) {
			t.Errorf("%q: %v", text, origins)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.2:7946", "[::1]:1", "host", ":0", "fe80::1%eth0", "[fe80::1%eth0]:7946"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, mustHost bool) {
		got, err := address(s, mustHost)
		if err != nil {
			if !errors.Is(err, ukai.ErrInvalid) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if again, err := address(got, mustHost); err != nil || again != got {
			t.Errorf("%q became %q, which becomes %q, %v", s, got, again, err)
		}
	})
}
