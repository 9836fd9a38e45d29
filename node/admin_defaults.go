package node

import (
	"context"
	"fmt"
	"time"

	"ukai"
	"ukai/crdt"
	"ukai/node/admin"
	"ukai/node/place"
)

const (
	// settingRepairAfter is the mesh-wide setting that says for how long a node may be down before its replicas are made anew elsewhere; 0: for
	// ever.
	settingRepairAfter = "repair-after"
	// Less would make anew what comes back with a reboot, more is better said as never.
	minRepairAfter = 10 * time.Second
	maxRepairAfter = 30 * 24 * time.Hour
)

// repairAfter returns for how long a node may be down before its replicas are made anew elsewhere, as place.Input has it: negative for ever.
func (n *Node) repairAfter() (after time.Duration) {
	after = place.DefaultRepairAfter
	n.mesh.View(func(c *crdt.Catalog) {
		text, set := c.Setting(settingRepairAfter)
		if d, err := time.ParseDuration(text); set && err == nil {
			if after = d; d <= 0 {
				after = -1
			}
		}
	})
	return after
}

// defaultRule returns the rule of disks that are created without one.
func (n *Node) defaultRule() (rule string) {
	n.mesh.View(func(c *crdt.Catalog) { rule, _ = c.Setting(settingDefaultRule) })
	if rule == "" {
		rule = fallbackRule
	}
	return rule
}

// Defaults implements admin.Backend.
func (n *Node) Defaults(context.Context) (admin.Defaults, error) {
	return admin.Defaults{Rule: n.defaultRule(), RepairAfterSeconds: int64(max(n.repairAfter(), 0) / time.Second)}, nil
}

// SetDefaults implements admin.Backend.
func (n *Node) SetDefaults(ctx context.Context, s admin.SetDefaults) (admin.Defaults, error) {
	values := map[string]string{}
	if s.Rule != nil {
		rule, err := parseRule(*s.Rule)
		if err != nil {
			return admin.Defaults{}, fmt.Errorf("default rule: %w", err)
		}
		values[settingDefaultRule] = rule.String()
	}
	if s.RepairAfterSeconds != nil {
		after := time.Duration(*s.RepairAfterSeconds) * time.Second
		if after != 0 && (after < minRepairAfter || after > maxRepairAfter) {
			return admin.Defaults{}, fmt.Errorf("repair after %v: %w: from %v to %v, or 0 for never", after, ukai.ErrInvalid, minRepairAfter, maxRepairAfter)
		}
		values[settingRepairAfter] = after.String()
	}
	err := n.mesh.Update(func(c *crdt.Catalog, stamp func() crdt.Stamp) (all crdt.Delta, err error) {
		for name, value := range values {
			d, err := c.SetSetting(name, &value, stamp())
			if err != nil {
				return all, err
			}
			all = all.Join(d)
		}
		return all, nil
	})
	if err != nil {
		return admin.Defaults{}, fmt.Errorf("defaults: %w", err)
	}
	out, err := n.Defaults(ctx)
	if err == nil {
		n.events.add(admin.Event{Level: admin.Fine, Kind: "defaults-set", Text: fmt.Sprintf("disks without a rule get %s; what is lost is made anew after %s", out.Rule, afterText(out))})
	}
	return out, err
}

func afterText(d admin.Defaults) string {
	if d.RepairAfterSeconds == 0 {
		return "an order only"
	}
	return (time.Duration(d.RepairAfterSeconds) * time.Second).String()
}
