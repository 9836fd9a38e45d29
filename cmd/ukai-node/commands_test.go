package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandReference fails where COMMANDS.md tells something else than the program does. `make docs` rewrites it.
func TestCommandReference(t *testing.T) {
	const file = "COMMANDS.md"
	want := commandReference((&app{}).root())
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run `make docs`", err)
	}
	if string(got) == want {
		return
	}
	have, should := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for i := range should {
		if i >= len(have) || have[i] != should[i] {
			t.Fatalf("%s:%d is not what the program does: %q is missing there; run `make docs`", file, i+1, should[i])
		}
	}
	t.Fatalf("%s:%d is not what the program does: %q is too much; run `make docs`", file, len(should)+1, have[len(should)])
}

// commandReference tells all that the command line understands.
func commandReference(root *cobra.Command) string {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var b strings.Builder
	b.WriteString("# Commands of ukai-node\n\nWritten by `make docs` from the program itself: do not edit.\n\n")
	for _, c := range runnable(root) {
		words := strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		fmt.Fprintf(&b, "- [%s](#%s) - %s\n", words, anchor(c), c.Short)
	}
	fmt.Fprintf(&b, "\n[Environment](#environment), [exit codes](#exit-codes).\n\n## All commands\n\n%s\n\n", root.Long)
	fenced(&b, root.PersistentFlags().FlagUsages())
	for _, c := range runnable(root) {
		reference(&b, c)
	}
	b.WriteString("\n## Environment\n\nFor each setting a flag wins over its variable, and that over the configuration file.\n\n| variable | key in the file | meaning | default |\n|---|---|---|---|\n")
	b.WriteString("| `UKAI_CONFIG` | | configuration file | `" + defaultConfig + "` if it exists |\n")
	for _, s := range settings() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", s.variable(), s.key, strings.ReplaceAll(s.usage, "`", ""), s.unset)
	}
	b.WriteString("| `NO_COLOR` | | if set: no colours | colours on a terminal |\n")
	fmt.Fprintf(&b, "| `GOMAXPROCS` | | threads that run Go code at once, for `start` | the number of CPUs, at least %d |\n", minProcs)
	b.WriteString("\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", e.code, e.meaning)
	}
	return b.String()
}

// runnable returns the commands that do something, depth first.
func runnable(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden || sub.Name() == "help":
		case sub.HasSubCommands():
			if !sub.DisableFlagsInUseLine { // does something itself
				list = append(list, sub)
			}
			list = append(list, runnable(sub)...)
		default:
			list = append(list, sub)
		}
	}
	return list
}

func anchor(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func reference(b *strings.Builder, c *cobra.Command) {
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	if c.Parent().Name() == "completion" { // cobra's own text, indented for terminals
		text = c.Short + ". `" + c.CommandPath() + " --help` tells how to load it."
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n", c.CommandPath(), strings.TrimSpace(text))
	fenced(b, c.UseLine()+"\n")
	if c.Example != "" {
		b.WriteString("Examples:\n\n")
		fenced(b, c.Example+"\n")
	}
	c.InitDefaultHelpFlag()
	fenced(b, c.LocalNonPersistentFlags().FlagUsages())
}

func fenced(b *strings.Builder, text string) {
	if text != "" {
		fmt.Fprintf(b, "```\n%s```\n", text)
	}
}
