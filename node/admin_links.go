package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/pace"
)

// Links implements admin.Backend.
func (n *Node) Links(context.Context) ([]admin.Link, error) {
	list := []admin.Link{}
	seen := n.lookAtLinks()
	if seen == nil {
		return list, nil
	}
	p := n.people()
	for pair, limit := range seen.limits {
		list = append(list, n.link(p, seen, pair, limit))
	}
	slices.SortFunc(list, func(a, b admin.Link) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (n *Node) link(p people, seen *linksSeen, pair pace.Pair, limit pace.Limit) admin.Link {
	now := time.Now()
	out := admin.Link{Name: pair.String(), Limit: limit.Rate.String(), Now: limit.At(now).String(), BytesPerSecond: int64(limit.At(now)), Copying: []string{}}
	for _, w := range limit.Windows {
		out.At = append(out.At, w.String())
	}
	if len(limit.Windows) > 0 {
		out.Zone = limit.ZoneText()
	}
	if until, ok := limit.Until(now); ok {
		out.Until = until
	}
	if seen != nil {
		for _, id := range seen.pulls[pair.Key()] {
			out.Copying = append(out.Copying, p.ref(id).String())
		}
	}
	slices.Sort(out.Copying)
	return out
}

// SetLink implements admin.Backend.
func (n *Node) SetLink(_ context.Context, link string, s admin.SetLink) (admin.Link, error) {
	p := n.people()
	var known []string
	for id := range p.nodes {
		if dc := p.labels(id)[ukai.LabelDC]; dc != "" && !slices.Contains(known, dc) {
			known = append(known, dc)
		}
	}
	slices.Sort(known)
	pair, err := pace.ParsePair(link, known)
	if err != nil {
		return admin.Link{}, err
	}
	limit, err := pace.ParseLimit(s.Limit, s.At, s.Zone)
	if err != nil {
		return admin.Link{}, fmt.Errorf("link %v: %w", pair, err)
	}
	var value *string
	if limit.Rate >= 0 || len(limit.Windows) > 0 {
		text := linkText(pair, limit)
		value = &text
	}
	err = n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (crdt.Delta, error) {
		return c.SetSetting(linkSetting(pair), value, stamp())
	})
	if err != nil {
		return admin.Link{}, fmt.Errorf("link %v: %w", pair, err)
	}
	n.events.add(admin.Event{Level: admin.Fine, Kind: "link-set", Text: fmt.Sprintf("background copies over the link %v are limited to %v", pair, limit)})
	out := n.link(p, n.lookAtLinks(), pair, limit)
	for _, dc := range []string{pair.A, pair.B} {
		if !slices.Contains(known, dc) {
			out.Notice = fmt.Sprintf("no node has the label dc=%s yet", dc)
		}
	}
	return out, nil
}
