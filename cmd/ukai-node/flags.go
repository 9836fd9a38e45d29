package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// settingFlags adds the flags of some settings, all if none are named, and returns what reads those that were given.
func settingFlags(c *cobra.Command, keys ...string) func() map[string][]string {
	var read []func(given map[string][]string)
	for _, s := range settings() {
		if s.flag == "-" || len(keys) > 0 && !slices.Contains(keys, s.key) {
			continue
		}
		usage := fmt.Sprintf("%s (%s; default %s)", s.usage, s.variable(), s.unset)
		switch s.kind {
		case yesNo:
			v := c.Flags().Bool(s.flagName(), false, usage)
			read = append(read, func(given map[string][]string) { given[s.key] = []string{fmt.Sprint(*v)} })
		case list, pairs:
			v := c.Flags().StringArray(s.flagName(), nil, usage+" (may be repeated)")
			read = append(read, func(given map[string][]string) { given[s.key] = *v })
		default:
			v := c.Flags().String(s.flagName(), "", usage)
			read = append(read, func(given map[string][]string) { given[s.key] = []string{*v} })
		}
		flag, last := c.Flags().Lookup(s.flagName()), len(read)-1
		set := read[last]
		read[last] = func(given map[string][]string) {
			if flag.Changed {
				set(given)
			}
		}
		hideDefault(flag)
	}
	return func() map[string][]string {
		given := map[string][]string{}
		for _, f := range read {
			f(given)
		}
		return given
	}
}

// hideDefault keeps "(default false)" out of the help text, which says what holds without the flag.
func hideDefault(f *pflag.Flag) { f.DefValue = strings.TrimPrefix(f.DefValue, "false") }
