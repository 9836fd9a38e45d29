package admintest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"ukai"
	"ukai/node/admin"
)

// Links lists what SetLink has set.
func (f *Fake) Links(context.Context) ([]admin.Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.links), nil
}

// SetLink takes any budget as it is written; no window holds now, and t1 copies.
func (f *Fake) SetLink(_ context.Context, link string, s admin.SetLink) (admin.Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, b, ok := strings.Cut(link, "-")
	if !ok {
		return admin.Link{}, fmt.Errorf("link %q: %w: write two datacenters joined by -", link, ukai.ErrInvalid)
	}
	l := admin.Link{Name: min(a, b) + "-" + max(a, b), Limit: s.Limit, At: s.At, Now: s.Limit, Copying: []string{"t1"}}
	if len(s.At) > 0 {
		l.Zone = cmp.Or(s.Zone, "+00:00")
	}
	f.links = slices.DeleteFunc(f.links, func(k admin.Link) bool { return k.Name == l.Name })
	if s.Limit != "none" || len(s.At) > 0 {
		f.links = append(f.links, l)
	}
	slices.SortFunc(f.links, func(a, b admin.Link) int { return strings.Compare(a.Name, b.Name) })
	return l, nil
}
