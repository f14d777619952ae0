package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

type installFlags struct {
	clients     []string
	shares      []string
	name        string
	yes, remove bool
}

func (a *app) mcpInstallCommand() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use:   "install [flags]",
		Short: "Write carrel mcp into settings of agent programs, after showing it",
		Long: `Write carrel mcp into the settings of agent programs: ` + strings.Join(clientNames(), ", ") + `.
Without --client it is those that have settings here. What would be written is
shown first, and asked about. The file is replaced whole, what was there is kept
beside it, and nothing else in it changes.

Without -v the guests of Cursor and VS Code get the folder that is open, those of
Claude Code the one it is started in, and those of Claude Desktop none.`,
		Example: "  carrel mcp install\n  carrel mcp install --client claude-desktop -v ~/src/project\n  carrel mcp install --remove",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doMCPInstall(cmd.Context(), &f) },
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.clients, "client", nil, "only this `program`: "+strings.Join(clientNames(), ", "))
	fs.StringArrayVarP(&f.shares, "share", "v", nil, "the guests' `share`, as of carrel run; relative to the current folder")
	fs.StringVar(&f.name, "name", "", "the one guest, by its `name`, that all sessions use")
	fs.BoolVarP(&f.yes, "yes", "y", false, "write without asking")
	fs.BoolVar(&f.remove, "remove", false, "take it out again")
	return cmd
}

func (a *app) doMCPInstall(ctx context.Context, f *installFlags) error {
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args, err := f.args()
	if err != nil {
		return err
	}
	chosen, err := chooseClients(f.clients, home)
	if err != nil {
		return err
	}
	var edits []*edit
	for _, c := range chosen {
		e, err := prepare(c.file(home), c.key, c.entry(self, args, os.Getenv("CARREL_HOME")), f.remove)
		if err != nil {
			return err
		}
		if e == nil || bytes.Equal(e.before, e.after) {
			a.note(c.name + ": nothing to do in " + c.file(home))
			continue
		}
		edits = append(edits, e)
		fmt.Fprintf(a.out, "%s, in %s:\n%s\n", c.name, safe(e.file), indent(safeText(e.shown)))
	}
	if len(edits) == 0 {
		return nil
	}
	if !f.yes {
		if !a.asks() {
			a.warn("nothing was written: --yes writes it")
			return errNo
		}
		answer, err := a.ask(ctx, "write this? [y]es, [n]o")
		if err != nil {
			return err
		}
		if answer != "y" && answer != "yes" {
			return errNo
		}
	}
	for _, e := range edits {
		backup, err := e.write()
		if err != nil {
			return err
		}
		if backup != "" {
			a.note("wrote " + e.file + "; what it was is in " + backup)
		} else {
			a.note("wrote " + e.file)
		}
	}
	return nil
}

// args are what the agent's program is to call carrel with, beyond what is its own.
func (f *installFlags) args() ([]string, error) {
	var out []string
	cwd, err := currentFolder()
	if err != nil && len(f.shares) > 0 {
		return nil, err
	}
	for _, s := range f.shares {
		sh, err := parseShare(s, cwd)
		if err != nil {
			return nil, usageError{err}
		}
		word := shareWord(sh)
		if !strings.HasPrefix(s, sh.Path) && !filepath.IsAbs(strings.SplitN(s, ":", 2)[0]) {
			out = append(out, "-v", word)
			continue
		}
		out = append(out, "-v", s)
	}
	if f.name != "" {
		out = append(out, "--name", f.name)
	}
	return out, nil
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}

// safeText is safe for text of several lines.
func safeText(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = safeLine(l)
	}
	return strings.Join(lines, "\n")
}

func chooseClients(names []string, home string) (out []mcpClient, err error) {
	for _, n := range names {
		i := slices.IndexFunc(mcpClients, func(c mcpClient) bool { return c.name == n })
		if i < 0 {
			return nil, usageError{fmt.Errorf("--client %.40q: use one of %s", n, strings.Join(clientNames(), ", "))}
		}
		out = append(out, mcpClients[i])
	}
	if len(names) > 0 {
		return out, nil
	}
	for _, c := range mcpClients {
		if c.here(home) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("none of the programs has settings here: name one with --client (" + strings.Join(clientNames(), ", ") + ")")
	}
	return out, nil
}
