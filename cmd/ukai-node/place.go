package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ukai"
	"ukai/node/admin"
)

// termHelp is how rules are written, for help texts.
const termHelp = `A rule is one or more terms SELECTOR:COUNT. A selector is key=value, key!=value or node=NAME, or several joined by + that must all hold:

  dc=tokyo:2                     two replicas in tokyo
  dc=tokyo+ssd=yes:1 dc=osaka:1  one on a node in tokyo with an SSD, one in osaka
  node=t1:1                      one on the node t1
  dc=$here:2 dc!=$here:1         two where the VM runs, one elsewhere (with --follow 10m)

Two replicas of a disk never lie on the same node; --spread KEY keeps them apart further, for example by rack.
$here, as the value of a label, is that of the node on which the disk has been used for as long as --follow says: a VM that stays in another
datacenter takes its data along, one that only passes through does not. Until then it is where the disk was created, or was when it got the rule.
Put it into single quotes, or the shell replaces it.`

func (a *app) placeCommand() *cobra.Command {
	return group("place", "Decide where data lies: labels of nodes and rules of disks", a.placeNodeCommand(), a.placeDiskCommand(), a.placeDefaultCommand(), a.placeShowCommand())
}

// ruleFlags are the flags that belong to a rule.
type ruleFlags struct {
	spread         []string
	strict, prefer bool
	minSync        int
	follow         time.Duration
}

func (r *ruleFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&r.spread, "spread", nil, "no two replicas share the value of this label `KEY` (may be repeated)")
	c.Flags().BoolVar(&r.strict, "strict", false, "refuse the rule if it cannot be met now (the default)")
	c.Flags().BoolVar(&r.prefer, "prefer", false, "accept the rule all the same, with a standing warning")
	c.Flags().IntVar(&r.minSync, "min-sync", 0, "fewest in-sync replicas, `N`, with which writes go on (default 1)")
	c.Flags().DurationVar(&r.follow, "follow", 0, "for how long, `DURATION`, a VM must have run elsewhere before $here means that place")
	c.Flags().Lookup("follow").DefValue = ""
	c.MarkFlagsMutuallyExclusive("strict", "prefer")
	_ = c.RegisterFlagCompletionFunc("spread", cobra.FixedCompletions([]string{"dc", "rack", "host"}, cobra.ShellCompDirectiveNoFileComp))
}

// rule returns the rule that terms and flags make.
func (r *ruleFlags) rule(terms []string) (admin.Rule, error) {
	if r.follow%time.Second != 0 {
		return admin.Rule{}, usageError{fmt.Errorf("--follow %v: whole seconds only", r.follow)}
	}
	return admin.Rule{Terms: terms, Spread: r.spread, Prefer: r.prefer, MinSync: r.minSync, FollowSeconds: int64(r.follow / time.Second)}, nil
}

// errRuleFlagsWithoutTerms refuses flags of a rule where there is none.
var errRuleFlagsWithoutTerms = errors.New("--spread, --strict, --prefer, --min-sync and --follow belong to a rule: give terms such as dc=tokyo:2")

// given says whether one of the flags was given.
func (r *ruleFlags) given() bool {
	return len(r.spread) > 0 || r.strict || r.prefer || r.minSync != 0 || r.follow != 0
}

// printPlacement tells what is wanted of a disk, what is true, and why they differ.
func (a *app) printPlacement(p admin.Placement) {
	met := a.colour(green, "met")
	if !p.Met {
		met = a.colour(yellow, "not met")
	}
	a.say("%s  rule %s: %s", p.Disk.Name, dash(p.Rule), met)
	if p.Here != nil {
		a.printHere(*p.Here)
	}
	var rows [][]string
	for _, w := range p.Wanted {
		rows = append(rows, []string{"  " + w.Term, fmt.Sprintf("%d of %d", w.Have, w.Count), dash(strings.Join(w.Nodes, ", "))})
	}
	if len(rows) > 0 {
		a.table([]string{"  WANTED", "HAVE", "NODES"}, rows)
	}
	a.printRanges(p.Ranges)
	if len(p.Replicas) > 0 {
		a.printReplicas(p.Replicas)
	}
	if len(p.Arbiters) > 0 {
		a.say("  arbiters: %s", arbiters(p.Arbiters))
	}
	for _, d := range p.Differences {
		a.say("  differs: %s", d)
	}
	if p.AllowFewer {
		a.say("  allowed: fewer copies in sync than before, until the move is done")
	}
	if text := a.keptText(p.KeepStale, p.Kept); text != "" {
		a.say("  old copies: %s", text)
	}
	a.printReasons(p.Reasons)
	a.printSteps(p)
	if p.Doing != "" {
		a.say("  being done: %s", p.Doing)
	}
	a.warnings(p.Warnings)
	if p.Notice != "" {
		a.say("notice: %s", p.Notice)
	}
}

// keptText tells of old copies of a disk, "" if there are none and none are to be kept.
func (a *app) keptText(keep bool, kept []admin.OldCopy) string {
	var parts []string
	for _, k := range kept {
		parts = append(parts, fmt.Sprintf("%s on %s, %s", formatSize(k.Bytes), k.Node, a.ago(k.Since)))
	}
	switch {
	case len(parts) > 0:
		return strings.Join(parts, "; ")
	case keep:
		return "kept where replicas are dropped; none yet"
	}
	return ""
}

// printRanges tells of the blocks that have a rule of their own.
func (a *app) printRanges(list []admin.Range) {
	var rows [][]string
	for _, r := range list {
		met := a.colour(green, "met")
		if !r.Met {
			met = a.colour(yellow, "not met")
		}
		var have []string
		for _, w := range r.Wanted {
			have = append(have, fmt.Sprintf("%d/%d", w.Have, w.Count))
		}
		rows = append(rows, []string{"  " + r.Blocks, formatSize(r.Bytes), r.Rule, met, dash(strings.Join(have, " ")), dash(r.Now)})
	}
	if len(rows) > 0 {
		a.table([]string{"  BLOCKS", ">SIZE", "OWN RULE", "IS", "HAVE", "NOW"}, rows)
	}
}

// printReplicas tells of replicas, and which blocks each is of where not all are of all.
func (a *app) printReplicas(list []admin.Replica) {
	rows, head := a.replicaRows(list), []string{"  REPLICA ON", "DC", "ROLE", "WHY"}
	if slices.ContainsFunc(list, func(r admin.Replica) bool { return r.Blocks != "" }) {
		head = slices.Insert(head, 2, "BLOCKS")
		for i := range rows {
			rows[i] = slices.Insert(rows[i], 2, dash(list[i].Blocks))
		}
	}
	a.table(head, rows)
}

// printHere tells what $here stands for, and whether that is about to change.
func (a *app) printHere(h admin.Here) {
	why := "where most copies are"
	if h.Node != nil {
		why = "used on " + h.Node.String()
	}
	a.say("  $here: %s, since %s (%s)", dash(h.Values.String()), dash(a.ago(h.Since)), why)
	if n := h.Next; n != nil {
		a.say("  next: used on %s, %s, since %s; the disk follows at %s", n.Node, n.Values, a.ago(n.Since), n.At.UTC().Format(time.DateTime+" UTC"))
	}
}

// printSteps tells what leads to the rule, and what that takes.
func (a *app) printSteps(p admin.Placement) {
	var rows [][]string
	for i, s := range p.Steps {
		copied := ""
		if s.Bytes > 0 {
			var path []string
			for _, n := range s.Path {
				path = append(path, n.String())
			}
			copied = "up to " + formatSize(s.Bytes) + " " + strings.Join(path, " > ")
			if s.ReusesBytes > 0 {
				copied += ", less what is equal in " + formatSize(s.ReusesBytes)
			}
		}
		var copies []string
		for _, c := range s.Copies {
			of := ""
			if len(s.Copies) > 1 {
				of = " of " + c.Blocks
			}
			copies = append(copies, fmt.Sprint(c.InSync)+of)
		}
		rows = append(rows, []string{fmt.Sprintf("  %d", i+1), s.Text, dash(copied), formatSeconds(s.Seconds), dash(strings.Join(copies, ", "))})
	}
	if len(rows) > 0 {
		a.table([]string{">  STEP", "WHAT", "COPIED", ">TAKES", ">IN SYNC THEN"}, rows)
	}
	if p.Costs != nil {
		a.printCosts(p.Costs)
	}
	if p.Forecast != nil {
		a.printForecast(*p.Forecast)
	}
}

func (a *app) printCosts(c *admin.Costs) {
	a.say("  in all: up to %s copied, about %s, never fewer than %d in sync", formatSize(c.Bytes), formatSeconds(c.Seconds), c.LeastInSync)
	var rows [][]string
	for _, l := range c.Links {
		rows = append(rows, []string{"  " + dash(l.From), dash(l.To), formatSize(l.Bytes)})
	}
	if len(rows) > 0 {
		a.table([]string{"  FROM DC", "TO DC", ">UP TO"}, rows)
	}
	rows = nil
	for _, l := range c.Pairs {
		rows = append(rows, []string{"  " + l.From, l.To, formatSize(l.Bytes)})
	}
	if len(rows) > 0 {
		a.table([]string{"  FROM NODE", "TO NODE", ">UP TO"}, rows)
	}
	rows = nil
	for _, s := range c.Space {
		left := formatSize(s.LeftBytes)
		if s.LeftBytes < 0 {
			left = a.colour(red, formatSize(-s.LeftBytes)+" too little")
		}
		rows = append(rows, []string{"  " + s.Node.String(), formatSize(s.PeakBytes), left, formatSize(s.FreedBytes)})
	}
	if len(rows) > 0 {
		a.table([]string{"  ON NODE", ">TAKES UP TO", ">LEFT THEN", ">FREED AN HOUR LATER"}, rows)
	}
	for _, s := range c.Assumed {
		a.say("  assumed: %s", s)
	}
}

// formatSeconds returns a time that was estimated, for people.
func formatSeconds(s float64) string {
	return time.Duration(max(1, math.Round(s)) * float64(time.Second)).String()
}

func (a *app) printReasons(reasons []admin.Reason) {
	var rows [][]string
	for _, r := range reasons {
		chosen := ""
		if r.Chosen {
			chosen = "chosen"
		}
		rows = append(rows, []string{"  " + r.Node.String(), dash(r.Labels[ukai.LabelDC]), dash(chosen), r.Why})
	}
	if len(rows) > 0 {
		a.table([]string{"  CONSIDERED", "DC", "CHOSEN", "WHY"}, rows)
	}
}

func (a *app) replicaRows(replicas []admin.Replica) (rows [][]string) {
	for _, r := range replicas {
		rows = append(rows, []string{"  " + r.Node.String(), dash(r.Labels[ukai.LabelDC]), a.colour(roleColour(r.Role), string(r.Role)), dash(a.whyNot(r))})
	}
	return rows
}

// whyNot tells why a replica is not in sync, since when, and how much it lacks.
func (a *app) whyNot(r admin.Replica) string {
	if r.Role == admin.InSync {
		return ""
	}
	parts := []string{}
	for _, p := range []string{r.Why, a.ago(r.Since)} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if r.Percent > 0 {
		parts = append(parts, fmt.Sprintf("%d %%", r.Percent))
	}
	if r.ETASeconds > 0 {
		parts = append(parts, "done in about "+(time.Duration(r.ETASeconds)*time.Second).String())
	}
	if r.BehindBytes > 0 {
		parts = append(parts, formatSize(r.BehindBytes)+" to copy")
	}
	return strings.Join(parts, ", ")
}

func roleColour(r admin.Role) string {
	switch r {
	case admin.InSync:
		return green
	case admin.Syncing:
		return yellow
	case admin.Out:
		return red
	}
	return ""
}

func arbiters(list []admin.Arbiter) string {
	var parts []string
	for _, n := range list {
		s := n.Node.String()
		if dc := n.Labels[ukai.LabelDC]; dc != "" {
			s += " (" + dc + ")"
		}
		if !n.Reachable {
			s += " unreachable"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}
