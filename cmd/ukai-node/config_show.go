package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Show a sample of the configuration file, or what is configured", a.configSampleCommand(), a.configShowCommand())
}

func (a *app) configSampleCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "sample",
		Short:             "Print a configuration file in which everything is explained and commented out",
		Example:           "  ukai-node config sample > " + defaultConfig,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, sampleConfig())
			return err
		},
	}
}

// sampleConfig returns a configuration file that sets nothing and explains everything.
func sampleConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Configuration of a UKAI node, read from %s or from the file that --config or UKAI_CONFIG names.
# For each setting a flag of `+"`ukai-node start`"+` wins over the environment, and that over this file. Unknown keys are refused.
# %s
`, defaultConfig, sizeHelp)
	for _, s := range settings() {
		from := s.variable()
		if s.flag != "-" {
			from = "--" + s.flagName() + ", " + from
		}
		fmt.Fprintf(&b, "\n# %s.\n# %s. If not set: %s.\n#%s: %s\n", capital(strings.ReplaceAll(s.usage, "`", "")), from, s.unset, s.key, s.example)
	}
	return b.String()
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (a *app) configShowCommand() *cobra.Command {
	var given func() map[string][]string
	c := a.reading(&cobra.Command{
		Use:               "show",
		Short:             "Show each setting, its value, and where the value comes from",
		Long:              "Check the configuration and show each setting, its value, and where the value comes from. It takes the flags of start.",
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			_, origins, err := load(a.sources(given()))
			if err != nil {
				return err
			}
			type shown struct {
				Key   string `json:"key"`
				Value string `json:"value"`
				From  string `json:"from"`
			}
			var all []shown
			for _, s := range settings() {
				o := origins[s.key]
				v := shown{s.key, cmp.Or(o.text, s.unset), cmp.Or(o.where, "default")}
				if s.key == "mesh-key" && o.text != "" {
					v.Value = "(secret)"
				}
				all = append(all, v)
			}
			return a.show(all, func() {
				var rows [][]string
				for _, v := range all {
					rows = append(rows, []string{v.Key, v.Value, v.From})
				}
				a.table([]string{"SETTING", "VALUE", "FROM"}, rows)
			})
		},
	})
	given = settingFlags(c)
	return c
}
