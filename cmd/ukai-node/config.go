package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"ukai"
	"ukai/node/volume"
)

// maxConfigBytes bounds the configuration file and the seed file.
const maxConfigBytes = 1 << 20

// origin says where the value of a setting came from. The zero origin is the default.
type origin struct {
	rank  rank
	where string // for error texts: "--seed", "UKAI_SEEDS", "/etc/ukai/ukai.yaml:12"
	text  string // the value, as it was written
}

// rank orders the sources of configuration: a higher one wins, for each setting by itself.
type rank int

const (
	byDefault rank = iota
	byFile
	byEnvironment
	byFlag
)

// sources are where configuration is read from.
type sources struct {
	file  string // path; "": defaultConfig if it exists
	env   func(string) (string, bool)
	flags map[string][]string // setting key -> values, of the flags that were given
	open  func(string) (io.ReadCloser, error)
}

// load reads and checks the configuration. It reports all faults of the file at once. The origins are by setting key.
func load(s sources) (config, map[string]origin, error) {
	c := config{
		Listen: ":" + defaultPort, Data: defaultData, Mount: defaultMount, Socket: defaultSocket, MountMode: 0o600,
		OnLossTimeout: volume.DefaultLossLimit, LogLevel: slog.LevelInfo, LogFormat: "text",
	}
	written, err := s.readFile()
	if err != nil {
		return c, nil, err
	}
	var errs []error
	origins := map[string]origin{}
	for _, set := range settings() {
		values, from := s.valuesOf(set, written)
		if from.rank == byDefault {
			continue
		}
		if err := set.set(&c, values); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", from.where, err))
		}
		origins[set.key] = from
	}
	if len(errs) > 0 {
		return c, origins, errors.Join(errs...)
	}
	if err := c.settle(origins); err != nil {
		return c, origins, err
	}
	return c, origins, c.readSeeds(s.open)
}

// valuesOf returns what the highest source says of a setting.
func (s sources) valuesOf(set setting, written map[string]entry) ([]string, origin) {
	if values, ok := s.flags[set.key]; ok {
		return split(set.kind, values), origin{byFlag, "--" + set.flagName(), strings.Join(values, ",")}
	}
	if v, ok := s.env(set.variable()); ok && v != "" {
		return split(set.kind, []string{v}), origin{byEnvironment, set.variable(), v}
	}
	if e, ok := written[set.key]; ok {
		return split(set.kind, e.values), origin{byFile, fmt.Sprintf("%s:%d: %s", e.file, e.line, set.key), strings.Join(e.values, ",")}
	}
	return nil, origin{}
}

// split takes lists apart at commas and spaces.
func split(k kind, values []string) []string {
	if k != list && k != pairs {
		return values
	}
	var parts []string
	for _, v := range values {
		parts = append(parts, strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })...)
	}
	return parts
}

// settle decides between settings that exclude each other, and finds what follows from others.
func (c *config) settle(origins map[string]origin) error {
	key, file := origins["mesh-key"], origins["mesh-key-file"]
	switch {
	case key.rank == byDefault || file.rank == byDefault:
	case key.rank > file.rank:
		c.MeshKeyFile = ""
	case key.rank < file.rank:
		c.MeshKey = ""
	default:
		return fmt.Errorf("%s and %s: %w: give one of them", key.where, file.where, ukai.ErrInvalid)
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name of the node: %w; give one with --name", err)
		}
		c.Name, _, _ = strings.Cut(host, ".")
		if err := ukai.CheckName("node", c.Name); err != nil {
			return fmt.Errorf("the host name is no name for a node: %w; give one with --name", err)
		}
	}
	return nil
}

// readSeeds adds the seeds of the seed file.
func (c *config) readSeeds(open func(string) (io.ReadCloser, error)) error {
	if c.SeedFile == "" {
		return nil
	}
	f, err := open(c.SeedFile)
	if err != nil {
		return fmt.Errorf("seed file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return fmt.Errorf("seed file %s: %w", c.SeedFile, err)
	}
	if len(b) > maxConfigBytes {
		return fmt.Errorf("seed file %s: %w: more than %s", c.SeedFile, ukai.ErrInvalid, formatSize(maxConfigBytes))
	}
	seeds := c.Seeds
	for i, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		seeds = append(seeds, line)
		if err := setSeeds(c, seeds); err != nil {
			return fmt.Errorf("%s:%d: %w", c.SeedFile, i+1, err)
		}
	}
	return nil
}

// entry is one line of the configuration file.
type entry struct {
	file   string
	line   int
	values []string
}

// readFile reads the configuration file, if there is one.
func (s sources) readFile() (map[string]entry, error) {
	path := cmp.Or(s.file, defaultConfig)
	f, err := s.open(path)
	if errors.Is(err, fs.ErrNotExist) && s.file == "" {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("configuration %s: %w: more than %s", path, ukai.ErrInvalid, formatSize(maxConfigBytes))
	}
	return parseConfig(path, b)
}

// parseConfig reads a file of "key: value" lines in YAML. Every key must be one of the settings.
func parseConfig(path string, b []byte) (map[string]entry, error) {
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w: %w", path, ukai.ErrInvalid, err)
	}
	entries := map[string]entry{}
	var errs []error
	for i, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType {
			continue // nothing but comments
		}
		if i > 0 {
			return nil, fmt.Errorf("%s:%d: %w: one document only, without \"---\" in between", path, line(doc.Body), ukai.ErrInvalid)
		}
		var lines []*ast.MappingValueNode
		switch body := doc.Body.(type) {
		case *ast.MappingNode:
			lines = body.Values
		case *ast.MappingValueNode:
			lines = []*ast.MappingValueNode{body}
		default:
			return nil, fmt.Errorf("%s:%d: %w: want lines of the form key: value; see `ukai-node config sample`", path, line(doc.Body), ukai.ErrInvalid)
		}
		for _, l := range lines {
			if err := addEntry(entries, path, l); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return entries, errors.Join(errs...)
}

// addEntry adds one line of the file.
func addEntry(entries map[string]entry, path string, l *ast.MappingValueNode) error {
	at := fmt.Sprintf("%s:%d", path, line(l.Key))
	name, ok := l.Key.(*ast.StringNode)
	if !ok {
		return fmt.Errorf("%s: key %s: %w: keys are plain words", at, l.Key, ukai.ErrInvalid)
	}
	key := name.Value
	known := keys()
	if !slices.Contains(known, key) {
		err := fmt.Errorf("%s: unknown key %q: %w", at, key, ukai.ErrInvalid)
		if near := nearest(key, known); near != "" {
			return fmt.Errorf("%w; did you mean %q?", err, near)
		}
		return fmt.Errorf("%w; keys are %s", err, strings.Join(known, ", "))
	}
	if old, ok := entries[key]; ok {
		return fmt.Errorf("%s: %s: %w: it is also in line %d", at, key, ukai.ErrInvalid, old.line)
	}
	set := settings()[slices.Index(known, key)]
	values, err := values(set.kind, l.Value)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", at, key, err)
	}
	entries[key] = entry{file: path, line: line(l.Key), values: values}
	return nil
}

func keys() (list []string) {
	for _, s := range settings() {
		list = append(list, s.key)
	}
	return list
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

// values returns a value of the file as it would be written on the command line.
func values(k kind, n ast.Node) ([]string, error) {
	switch n := n.(type) {
	case *ast.NullNode:
		return nil, fmt.Errorf("%w: there is no value; give one or remove the line", ukai.ErrInvalid)
	case *ast.SequenceNode:
		if k != list && k != pairs {
			return nil, fmt.Errorf("%w: want one value, not a list", ukai.ErrInvalid)
		}
		var all []string
		for _, item := range n.Values {
			v, err := scalar(item)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, nil
	case *ast.MappingNode:
		return labelValues(k, n.Values)
	case *ast.MappingValueNode:
		return labelValues(k, []*ast.MappingValueNode{n})
	}
	v, err := scalar(n)
	return []string{v}, err
}

func labelValues(k kind, lines []*ast.MappingValueNode) ([]string, error) {
	if k != pairs {
		return nil, fmt.Errorf("%w: want a value, not keys with values", ukai.ErrInvalid)
	}
	all := map[string]string{}
	for _, l := range lines {
		key, err := scalar(l.Key)
		if err != nil {
			return nil, err
		}
		v, err := scalar(l.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		if _, ok := all[key]; ok {
			return nil, fmt.Errorf("%s: %w: it is there twice", key, ukai.ErrInvalid)
		}
		all[key] = v
	}
	var list []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		list = append(list, key+"="+all[key])
	}
	return list, nil
}

// scalar returns a plain value as it is written: 0660 stays 0660, and yes stays yes.
func scalar(n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, nil
	}
	return "", fmt.Errorf("%s: %w: want a plain value", n.Type(), ukai.ErrInvalid)
}

// nearest returns the known word that differs least from a mistyped one, "" if none is near.
func nearest(word string, known []string) string {
	best, least := "", 1+max(1, min(3, len(word)/2))
	for _, k := range known {
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance: how many letters must be put in, taken out or changed.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// owner finds the numbers of "user:group" or "user"; without a group it is the user's own.
func owner(v string) (uid, gid uint32, err error) {
	name, group, hasGroup := strings.Cut(v, ":")
	number := func(what, name, id string, err error) (uint32, error) {
		if n, e := strconv.ParseUint(name, 10, 32); e == nil {
			return uint32(n), nil
		}
		if err != nil {
			return 0, fmt.Errorf("%s %q: %w: this machine has none of that name", what, name, ukai.ErrInvalid)
		}
		n, err := strconv.ParseUint(id, 10, 32)
		return uint32(n), err
	}
	var u user.User
	found, lookupErr := user.Lookup(name)
	if lookupErr == nil {
		u = *found
	} else if byID, e := user.LookupId(name); e == nil {
		u, lookupErr = *byID, nil
	}
	if uid, err = number("user", name, u.Uid, lookupErr); err != nil {
		return 0, 0, err
	}
	if !hasGroup {
		if lookupErr != nil {
			return 0, 0, fmt.Errorf("user %q: %w: this machine has none of that number, so write USER:GROUP", name, ukai.ErrInvalid)
		}
		gid, err = number("group", u.Gid, u.Gid, nil)
		return uid, gid, err
	}
	var gidText string
	g, lookupErr := user.LookupGroup(group)
	if lookupErr == nil {
		gidText = g.Gid
	}
	gid, err = number("group", group, gidText, lookupErr)
	return uid, gid, err
}
