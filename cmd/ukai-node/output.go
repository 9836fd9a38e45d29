package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/goccy/go-yaml"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"ukai"
	"ukai/node/admin"
)

func (a *app) checkOutput() error {
	switch a.output {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("output format %q: %w: table, json or yaml", a.output, ukai.ErrInvalid)
}

// show prints v as JSON or YAML if that is asked for, else what people prints.
func (a *app) show(v any, people func()) error {
	switch a.output {
	case "json", "yaml":
		b, err := json.MarshalIndent(v, "", "  ")
		if err == nil && a.output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.stdout, strings.TrimSpace(string(b)))
		return err
	}
	people()
	return nil
}

// say prints a line.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stdout, format+"\n", args...) }

// note prints a line that does not belong to the output proper.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

// table prints rows below a header. Columns whose header begins with '>' are aligned right.
func (a *app) table(header []string, rows [][]string) { writeTable(a.stdout, header, rows) }

func writeTable(w io.Writer, header []string, rows [][]string) {
	t := table.NewWriter()
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	var top table.Row
	var columns []table.ColumnConfig
	for i, h := range header {
		name, right := strings.CutPrefix(h, ">")
		if right {
			columns = append(columns, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
		top = append(top, name)
	}
	t.SetColumnConfigs(columns)
	t.AppendHeader(top)
	for _, r := range rows {
		var row table.Row
		for _, cell := range r {
			row = append(row, cell)
		}
		t.AppendRow(row)
	}
	for line := range strings.Lines(t.Render()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// Colours of what needs attention.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
	bold   = "1"
)

// colour paints s if colours are wanted.
func (a *app) colour(code, s string) string {
	if !a.paint || code == "" || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func levelColour(l admin.Level) string {
	switch l {
	case admin.Fine:
		return green
	case admin.Warn:
		return yellow
	case admin.Critical:
		return red
	}
	return ""
}

// maxTogether bounds how many disks with the same warning are named.
const maxTogether = 5

// warnings prints what is not as it should be, with what would help. What is the same for several disks is printed once.
func (a *app) warnings(list []admin.Warning) {
	type same struct {
		level      admin.Level
		what, help string
	}
	disks := map[same][]string{}
	about := func(w admin.Warning) same {
		return same{w.Level, strings.TrimPrefix(w.Text, "disk "+w.Disk+": "), w.Remedy}
	}
	for _, w := range list {
		disks[about(w)] = append(disks[about(w)], w.Disk)
	}
	for _, w := range list {
		text := w.Text
		switch together := disks[about(w)]; {
		case len(together) > 1 && w.Disk != "" && together[0] != w.Disk:
			continue // told with the first
		case len(together) > maxTogether:
			text = fmt.Sprintf("disks %s and %d more: %s", strings.Join(together[:maxTogether], ", "), len(together)-maxTogether, about(w).what)
		case len(together) > 1 && w.Disk != "":
			text = fmt.Sprintf("disks %s: %s", strings.Join(together, ", "), about(w).what)
		}
		a.say("%s: %s", a.colour(levelColour(w.Level), string(w.Level)), text)
		if w.Remedy != "" {
			a.say("  remedy: %s", w.Remedy)
		}
	}
}

// ago returns how long ago t was.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return humanize.RelTime(t, a.now(), "ago", "from now")
}

// milliseconds writes microseconds as milliseconds with three digits at most.
func milliseconds(micros int64) string {
	ms := float64(micros) / 1000
	switch {
	case ms < 1:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

// dash stands where there is nothing to say.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// count writes "1 disk", "2 disks".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
