package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// app is one call of the program.
type app struct {
	in       *os.File
	out, err *os.File
	quiet    bool
	json     bool // the command writes JSON, so errors are JSON, too
	began    bool // the command line was understood
	timings  *timings
	signals  *signals
}

// run is the program, from its arguments to its exit status.
func run(args []string) int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	a.signals = watchSignals(a, cancel)
	defer a.signals.stop()

	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.began && !errors.As(err, new(usageError)) {
		if word := firstWord(args); cmd == root && word != "" { // cobra says it in several lines
			err = unknown(root, word)
		}
		err = usageError{err}
	}
	// What a signal ended fails in many ways; the signal is the reason.
	if sig := (signalError{}); err != nil && errors.As(context.Cause(ctx), &sig) && !errors.As(err, new(*client.ExitError)) {
		err = sig
	}
	a.explain(cmd, err)
	return exitStatus(err)
}

// helpWidth is the width of help texts, in characters.
const helpWidth = 80

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "carrel",
		Short: "Run untrusted work in a microVM that sees only what you share",
		Long: `Carrel gives an untrusted repository, or an AI agent, a desk of its own on your
machine: a microVM that sees only the folders you chose, and reaches only the
hosts you allowed.`,
		Example: `  carrel run -- make test             in a fresh guest that sees this folder
  carrel diff; carrel apply           what it changed; then into the folder
  carrel run --preset packages -- npm install
                                      in one that may fetch packages, too
  carrel start dev && carrel shell dev
  carrel doctor                       is everything there that a guest needs?`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.began = true
			a.json, _ = cmd.Flags().GetBool("json")
		},
	}
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprint(".FlagUsagesWrapped ", helpWidth)))
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		a.runCommand(), a.startCommand(), a.stopCommand(), a.rmCommand(), a.lsCommand(), a.inspectCommand(),
		a.execCommand(), a.shellCommand(), a.logsCommand(), a.cpCommand(),
		a.shareCommand(), a.diffCommand(), a.applyCommand(), a.discardCommand(), a.undoCommand(),
		a.allowCommand(), a.denyCommand(), a.egressCommand(), a.eventsCommand(), a.portCommand(),
		a.secretCommand(), a.policyCommand(), a.auditCommand(), a.doctorCommand(),
		a.imageCommand(), a.volumeCommand(), a.pruneCommand(), a.daemonCommand(), a.mcpCommand(), a.versionCommand(),
	)
	fill(root)
	return root
}

// fill breaks the paragraphs of every command's description at helpWidth.
func fill(cmd *cobra.Command) {
	paragraphs := strings.Split(cmd.Long, "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.Join(fold(p, helpWidth), "\n")
	}
	cmd.Long = strings.Join(paragraphs, "\n\n")
	for _, c := range cmd.Commands() {
		fill(c)
	}
}

// connect finds or starts the daemon.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	return client.Connect(ctx, client.Options{Notice: a.note})
}

// many is no upper bound of arguments.
const many = -1

// arguments checks how many there are, from least to most. What is said shows the
// line as it should be.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("something is missing: %s", cmd.UseLine())
		case most == many || len(args) <= most:
			return nil
		case cmd.HasAvailableSubCommands():
			return unknown(cmd, args[most])
		}
		return fmt.Errorf("%q is too much: %s", args[most], cmd.UseLine())
	}
}

// unknown says that cmd has no such command, and which ones may have been meant.
func unknown(cmd *cobra.Command, word string) error {
	text := fmt.Sprintf("unknown command %q for %q", word, cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		far := func(s string) int { // what was typed with a letter too many comes first
			if strings.HasPrefix(word, s) {
				return 0
			}
			return 1
		}
		slices.SortStableFunc(near, func(a, b string) int { return far(a) - far(b) })
		text += " (did you mean " + strings.Join(near, " or ") + "?)"
	}
	return errors.New(text)
}

// firstWord is the first argument that is no flag.
func firstWord(args []string) string {
	for _, w := range args {
		if !strings.HasPrefix(w, "-") {
			return w
		}
	}
	return ""
}

// needs wraps a check of arguments so that its error shows the usage.
func needs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// names checks that every argument can be a guest's name, before anything runs.
func names(check cobra.PositionalArgs) cobra.PositionalArgs { return named("guest", check) }

// named does so for the names of guests or of images.
func named(what string, check cobra.PositionalArgs) cobra.PositionalArgs {
	return needs(func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		for _, n := range args {
			if err := client.CheckName(what, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// completionTime bounds a completion: a person waits with a finger on Tab.
const completionTime = 2 * time.Second

// guestNames completes up to max names of guests.
func guestNames(max int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= max {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete((*client.Client).Guests, func(g *api.Guest) (name, about string) { return g.Name, guestWord(g) })
	}
}

// complete offers the names of what list has, with a word about each. It starts nothing.
func complete[T any](list func(*client.Client, context.Context) ([]T, error), say func(T) (name, about string)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	c, err := client.Connect(ctx, client.Options{NoStart: true})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	all, err := list(c, ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, x := range all {
		name, about := say(x)
		out = append(out, cobra.CompletionWithDesc(safe(name), safe(about)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
