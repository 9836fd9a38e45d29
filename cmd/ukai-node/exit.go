package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ukai"
)

// Exit codes. exitCodes documents them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
	exitNotFound    = 5
	exitInDoubt     = 6
	exitInterrupted = 130
)

// exitCodes tells what each exit code means, for the help text and COMMANDS.md.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitOK, "done"},
	{exitError, "an error; doctor: something is not as it should be; scrub: something is corrupt and not repaired"},
	{exitUsage, "the command line, the configuration or a value in them is wrong"},
	{exitUnreachable, "the node cannot be reached"},
	{exitRefused, "refused: the rule cannot be met, the name is taken, the disk is attached, there is no space; the text says why"},
	{exitNotFound, "there is no such disk or node"},
	{exitInDoubt, "no answer in time, or the outcome is not known: look before you try again"},
	{exitInterrupted, "interrupted"},
}

// exitHelp is exitCodes as text.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "\n  %-3d  %s", e.code, e.meaning)
	}
	return b.String()
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCode returns the code that tells err to a script.
func exitCode(err error) int {
	in := func(kinds ...error) bool {
		for _, k := range kinds {
			if errors.Is(err, k) {
				return true
			}
		}
		return false
	}
	var usage usageError
	switch {
	case errors.As(err, &usage), in(ukai.ErrInvalid):
		return exitUsage
	case in(ukai.ErrInDoubt, ukai.ErrTimeout, context.DeadlineExceeded):
		return exitInDoubt
	case in(ukai.ErrUnmet, ukai.ErrExists, ukai.ErrHeld, ukai.ErrRejected, ukai.ErrNoSpace, ukai.ErrPermission, ukai.ErrUnsupported,
		ukai.ErrFenced, ukai.ErrLocked, ukai.ErrQuarantined, ukai.ErrClockSkew, ukai.ErrVersion):
		return exitRefused
	case in(ukai.ErrUnreachable):
		return exitUnreachable
	case in(ukai.ErrNotFound):
		return exitNotFound
	}
	return exitError
}

// exactly checks that there are as many arguments as names, and names the first that is missing.
func exactly(names ...string) cobra.PositionalArgs { return between(names, len(names)) }

// atLeast allows any number of arguments after the named ones.
func atLeast(names ...string) cobra.PositionalArgs { return between(names, 1<<20) }

// optional allows at most one argument.
func optional() cobra.PositionalArgs { return between(nil, 1) }

func between(names []string, most int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError{errors.New(names[len(args)] + " is missing")}
		case len(args) > most:
			return usageError{errors.New("one argument too many: " + args[most])}
		}
		return nil
	}
}
