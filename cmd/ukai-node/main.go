// Command ukai-node runs a node of a UKAI mesh, and administers one. `ukai-node start` is the node; every other command asks the
// node on this machine through its socket, or another node through that.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ukai/node/admin"
)

// version is set by the linker.
var version = ""

func main() {
	a := app{
		stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, now: time.Now, args: os.Args[1:], version: buildVersion(), open: openNode,
		terminal: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("TERM") != "dumb",
		paint:    term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	}
	os.Exit(a.main())
}

// buildVersion returns what the linker set, or what the module system knows.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown"
}

// app is one run of the program.
type app struct {
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	now            func() time.Time
	args           []string
	version        string
	paint          bool // colours are wanted
	terminal       bool // what is printed may be drawn over
	open           opener

	// Flags of all commands.
	configFile string
	socket     string
	node       string
	output     string
	timeout    time.Duration

	ran bool // the command line was understood, and a command ran
}

// main runs the command line and returns the exit code.
func (a *app) main() int {
	ctx, stop := untilSignal()
	defer stop()
	cmd, err := a.root().ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	if err.Error() != "" {
		fmt.Fprintf(a.stderr, "ukai-node: %v\n", err)
	}
	code := exitCode(err)
	if !a.ran {
		code = exitUsage
	}
	if code == exitUsage && cmd != nil {
		fmt.Fprintf(a.stderr, "Run `%s --help` for how it is used.\n", cmd.CommandPath())
	}
	return code
}

// oneSignal is how long further signals count as the first one: sudo, timeout and others send theirs to the program and to its group, and a node
// must not lose its orderly end to that.
const oneSignal = 300 * time.Millisecond

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. The next one ends the program at once.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
			signal.Stop(signals)
			return
		}
		cancel()
		time.Sleep(oneSignal)
		signal.Stop(signals)
	}()
	return ctx, cancel
}

// root returns the command line.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ukai-node",
		Short: "Virtual disks for virtual machines in several datacenters",
		Long: `ukai-node runs a node of a UKAI mesh, and administers one.

A node is the place where a hypervisor finds its disks, a directory with one plain file per disk, and a store for their blocks.
` + "`ukai-node start`" + ` is the node. Every other command asks the node on this machine through its socket; --node sends it on
to another node.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetUsageTemplate(root.UsageTemplate() + "{{if not .HasParent}}\n" + exitHelp() + "\n{{end}}")
	root.SetArgs(a.args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if strings.Contains(err.Error(), "duration") { // pflag knows the rule and not the remedy
			err = fmt.Errorf("%w; write for example 30s, 5m or 1h", err)
		}
		return usageError{err}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "configuration `FILE` (UKAI_CONFIG; default "+defaultConfig+" if it exists)")
	flags.StringVar(&a.socket, "socket", "", "`FILE` of the node's admin socket (UKAI_SOCKET; default "+defaultSocket+")")
	root.AddGroup(&cobra.Group{ID: "node", Title: "This node:"}, &cobra.Group{ID: "mesh", Title: "The mesh and its disks:"}, &cobra.Group{ID: "help", Title: "Help:"})
	root.SetHelpCommandGroupID("help")
	root.SetCompletionCommandGroupID("help")
	for id, commands := range map[string][]*cobra.Command{
		"node": {a.startCommand(), a.meshCommand(), a.configCommand(), a.leaveCommand()},
		"mesh": {a.statusCommand(), a.doctorCommand(), a.eventsCommand(), a.placeCommand(), a.surviveCommand(), a.forecastCommand(), a.evacuateCommand(), a.jobsCommand(), a.linkCommand(), a.diskCommand(), a.handoverCommand(), a.scrubCommand()},
		"help": {a.versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	a.prepare(root)
	return root
}

// group returns a command that only has commands of its own.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(commands...)
	return c
}

// prepare makes each command that only has commands of its own refuse words that are none of them, and notes of the
// others that they ran: what fails before is the command line.
func (a *app) prepare(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.prepare(sub)
	}
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			a.ran = true
			return run(c, args)
		}
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.DisableFlagsInUseLine = true
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		c.SuggestionsMinimumDistance = 2
		err := fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w; did you mean %q?", err, strings.Join(near, `" or "`))
		}
		return usageError{err}
	}
}

// asking adds the flags of a command that asks a node.
func (a *app) asking(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.node, "node", "", "`NAME` or id of the node that is to answer (default: the one on this machine)")
	c.Flags().DurationVar(&a.timeout, "timeout", 2*time.Minute, "give up after this `DURATION`; the node may go on")
	_ = c.RegisterFlagCompletionFunc("node", a.completeNodes) // fails only for a flag that is not there
	return a.reading(c)
}

// reading adds the flag of a command that prints something programs may want to read.
func (a *app) reading(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&a.output, "output", "o", "table", "`FORMAT` of the output: table, json or yaml")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// ask runs f with a client of the node that was named.
func (a *app) ask(c *cobra.Command, f func(ctx context.Context, node *admin.Client) error) error {
	if err := a.checkOutput(); err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.Context(), a.timeout)
	defer cancel()
	return f(ctx, client)
}

// client returns a client of the node that was named.
func (a *app) client() (*admin.Client, error) {
	socket, err := a.socketPath()
	if err != nil {
		return nil, err
	}
	return admin.NewClient(admin.ClientConfig{Socket: socket, Node: a.node}), nil
}

// socketPath returns where the node's socket is: by flag, environment, configuration file, or by default.
func (a *app) socketPath() (string, error) {
	if a.socket != "" {
		return a.socket, nil
	}
	if s, ok := a.env("UKAI_SOCKET"); ok && s != "" {
		return s, nil
	}
	s := a.sources(nil)
	entries, err := s.readFile()
	if errors.Is(err, os.ErrPermission) && s.file == "" {
		return defaultSocket, nil // the file may hold the mesh key; not everybody may read it
	}
	if err != nil {
		return "", err
	}
	if e, ok := entries["socket"]; ok && len(e.values) == 1 {
		return e.values[0], nil
	}
	return defaultSocket, nil
}

// sources returns where configuration is read from. flags are those given, by setting.
func (a *app) sources(flags map[string][]string) sources {
	file := a.configFile
	if file == "" {
		file, _ = a.env("UKAI_CONFIG")
	}
	if a.socket != "" {
		if flags == nil {
			flags = map[string][]string{}
		}
		flags["socket"] = []string{a.socket}
	}
	return sources{file: file, env: a.env, flags: flags, open: openFile}
}

func openFile(path string) (io.ReadCloser, error) { return os.Open(path) }

// goVersion tells what the program was built with.
func goVersion() string { return runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH }
