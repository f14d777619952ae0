package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) shareCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "share",
		Short:   "Show and change which folders a guest sees, and how",
		Example: "  carrel share ls dev\n  carrel share add dev ~/src/lib:ro\n  carrel share explain .env",
		Args:    needs(arguments(0, 0)),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.shareLsCommand(), a.shareAddCommand(), a.shareRmCommand(), a.shareRefreshCommand(), a.shareExplainCommand())
	return cmd
}

func (a *app) shareLsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "ls NAME",
		Short:             "List the folders that a guest sees",
		Example:           "  carrel share ls dev",
		Args:              names(arguments(1, 1)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doShareLs(cmd.Context(), args[0]) },
	}
	cmd.Flags().Bool("json", false, "print a JSON array")
	return cmd
}

func (a *app) doShareLs(ctx context.Context, name string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	shares, err := c.Shares(ctx, name)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, shares)
	}
	t := tabwriter.NewWriter(a.table(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FOLDER\tIN THE GUEST\tMODE\tCARRIER\tNAMES")
	for _, f := range shares {
		s := f.GetShare()
		mode := modeWord(s.GetMode())
		if s.GetPlain() {
			mode += ",plain"
		}
		said := namesWord(s)
		if f.Cause != "" {
			said = "serves nothing: " + f.Cause
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", safe(s.GetPath()), safe(s.GetGuestPath()), mode, orDash(safe(f.Carrier)), orDash(safe(said)))
	}
	return t.Flush()
}

// namesWord lists a share's own names to hide and to protect, or is "".
func namesWord(s *api.Share) string {
	var parts []string
	for _, l := range []struct {
		verb string
		list []string
	}{{"hides", s.GetHide()}, {"protects", s.GetProtect()}} {
		if len(l.list) > 0 {
			parts = append(parts, l.verb+" "+strings.Join(l.list, " "))
		}
	}
	return strings.Join(parts, "; ")
}

func (a *app) shareAddCommand() *cobra.Command {
	var f nameFlags
	cmd := &cobra.Command{
		Use:   "add [flags] NAME PATH[:GUESTPATH][:MODE[,plain]]",
		Short: "Share one more folder with a guest",
		Long: `Share one more folder with a guest, for review unless a MODE says otherwise. One
that runs sees it at once; it is kept over stop and start.`,
		Example: "  carrel share add dev ~/src/lib\n  carrel share add dev ~/data:/data:ro",
		Args:    needs(arguments(2, 2)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doShareAdd(cmd.Context(), &f, args) },
	}
	cmd.ValidArgsFunction = guestNames(1)
	f.add(cmd.Flags())
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doShareAdd(ctx context.Context, f *nameFlags, args []string) error {
	if err := client.CheckName("guest", args[0]); err != nil {
		return usageError{err}
	}
	cwd, err := currentFolder()
	if err != nil {
		return err
	}
	s, err := parseShare(args[1], cwd)
	if err != nil {
		return usageError{err}
	}
	if err := f.put(s); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	is, err := c.AddShare(ctx, args[0], s)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(is)
	}
	s = is.GetShare()
	a.note(fmt.Sprintf("guest %s sees %s at %s (%s)", args[0], s.GetPath(), s.GetGuestPath(), modeMeans(s)))
	return nil
}

func (a *app) shareRmCommand() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME PATH",
		Short: "Take a folder from a guest",
		Long: `Take a folder from a guest: PATH is the folder here, or where the guest sees it.
Afterwards nothing in the guest reaches it, by files that are open either. One
whose changes wait for review is not taken, unless --force leaves them behind.`,
		Example:           "  carrel share rm dev ~/src/lib",
		Args:              needs(arguments(2, 2)),
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withShare(cmd.Context(), args, func(ctx context.Context, c *client.Client, name, path string) error {
				return c.RemoveShare(ctx, name, path, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "take it although changes wait, which cannot be looked at or applied then")
	return cmd
}

func (a *app) shareRefreshCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh NAME [PATH]",
		Short: "Show a guest what changed here under its review",
		Long: `Show a guest that runs what has changed here in the folders it has in review,
except where it has changed the same file itself. Without PATH: in all of them.`,
		Example:           "  carrel share refresh dev",
		Args:              needs(arguments(1, 2)),
		ValidArgsFunction: guestNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withShare(cmd.Context(), args, func(ctx context.Context, c *client.Client, name, path string) error {
				return c.RefreshShares(ctx, name, path)
			})
		},
	}
}

// withShare calls f with a guest and one of its shares, "" if none is named.
func (a *app) withShare(ctx context.Context, args []string, f func(ctx context.Context, c *client.Client, name, path string) error) error {
	if err := client.CheckName("guest", args[0]); err != nil {
		return usageError{err}
	}
	path := ""
	if len(args) > 1 {
		var err error
		if path, err = hostPath(args[1]); err != nil {
			return err
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c, args[0], path)
}

// hostPath makes a path as a person writes it absolute and clean.
func hostPath(p string) (string, error) {
	if p == "" || strings.ContainsRune(p, 0) {
		return "", usageError{errors.New("a path is empty, or has a NUL in it")}
	}
	if !filepath.IsAbs(p) {
		cwd, err := currentFolder()
		if err != nil {
			return "", err
		}
		p = filepath.Join(cwd, p)
	}
	if err := nameable(p); err != nil {
		return "", usageError{err}
	}
	return filepath.Clean(p), nil
}

func (a *app) shareExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [NAME] PATH",
		Short: "Say whether a guest sees a file here and may change it, and why",
		Long: `Say whether a guest sees a file of this machine and may change it, and which rule
says so. Without NAME: a guest that has the current folder in review.`,
		Example:           "  carrel share explain .env\n  carrel share explain dev src/.git/hooks/pre-commit",
		Args:              needs(arguments(1, 2)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doShareExplain(cmd.Context(), args) },
	}
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doShareExplain(ctx context.Context, args []string) error {
	name, at := "", args[len(args)-1]
	if len(args) == 2 {
		name = args[0]
		if err := client.CheckName("guest", name); err != nil {
			return usageError{err}
		}
	}
	path, err := hostPath(at)
	if err != nil {
		return err
	}
	var share *api.Share
	if name == "" {
		cwd, err := currentFolder()
		if err == nil {
			err = nameable(cwd)
		}
		if err != nil {
			return err
		}
		share = &api.Share{Path: cwd}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	x, err := c.ExplainShare(ctx, name, share, path)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(x)
	}
	word := "seen"
	switch {
	case x.Hidden:
		word = "hidden"
	case x.Protected:
		word = "protected"
	}
	fmt.Fprintf(a.out, "%s: %s\n", safe(at), word)
	if x.Reason != "" {
		fmt.Fprintln(a.out, "  "+safe(x.Reason))
	}
	if x.Pattern != "" {
		fmt.Fprintf(a.out, "  by %q (%s)\n", safe(x.Pattern), safe(x.Origin))
	}
	return nil
}
