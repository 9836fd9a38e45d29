package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ukai"
	"ukai/node/wire"
)

// maxMeshKeys bounds how many mesh keys a node accepts at once: the present one, and old ones while they are changed.
const maxMeshKeys = 4

// keyFile returns where the mesh key is, if it is in a file.
func (c config) keyFile() string {
	if c.MeshKeyFile != "" {
		return c.MeshKeyFile
	}
	return filepath.Join(c.Data, "mesh.key")
}

// meshKeys returns the configured mesh keys, the first of which is used to send. No key: fs.ErrNotExist.
func (c config) meshKeys() ([]wire.MeshKey, error) {
	if c.MeshKey != "" {
		return parseKeys(c.MeshKey)
	}
	b, err := os.ReadFile(c.keyFile())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("mesh key: %w; run as the user that owns the file, or give that user a copy", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("mesh key: %w; name a file that `ukai-node mesh init` made with --mesh-key-file", err)
	case err != nil:
		return nil, fmt.Errorf("mesh key: %w", err)
	}
	keys, err := parseKeys(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.keyFile(), err)
	}
	return keys, nil
}

// parseKeys reads mesh keys, one a line; # begins a comment.
func parseKeys(s string) (keys []wire.MeshKey, err error) {
	lines := bufio.NewScanner(strings.NewReader(s))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		k, err := wire.ParseMeshKey(line)
		if err != nil {
			return nil, err
		}
		if slices.Contains(keys, k) {
			return nil, fmt.Errorf("mesh key %s: %w: it is there twice", k.ID(), ukai.ErrInvalid)
		}
		keys = append(keys, k)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mesh key: %w: %w", ukai.ErrInvalid, err)
	}
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("mesh key: %w: there is none; make one with `ukai-node mesh init`", ukai.ErrInvalid)
	case len(keys) > maxMeshKeys:
		return nil, fmt.Errorf("%d mesh keys: %w: at most %d", len(keys), ukai.ErrInvalid, maxMeshKeys)
	}
	return keys, nil
}

// writeNewKey makes a mesh key in a new file that only its owner may read. It never touches a file that is there.
func writeNewKey(path string) (wire.MeshKey, error) {
	key := wire.NewMeshKey()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return key, fmt.Errorf("mesh key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return key, fmt.Errorf("mesh key %s: %w; it is not touched: whoever has it is in that mesh", path, ukai.ErrExists)
	case err != nil:
		return key, fmt.Errorf("mesh key: %w", err)
	}
	_, err = fmt.Fprintf(f, "# The mesh key. Who has it may join the mesh; nobody else may. Keep it as you keep passwords.\n%s\n", key)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = syncDir(filepath.Dir(path)) // a key that other nodes have must not vanish with the power
	}
	if err != nil {
		return key, errors.Join(fmt.Errorf("mesh key %s: %w", path, err), os.Remove(path))
	}
	return key, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
