package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) policyAgreeCommand() *cobra.Command {
	var hash string
	cmd := &cobra.Command{
		Use:   "agree [flags] [FOLDER]",
		Short: "Agree to what a repository asks for",
		Long: `Show what the ` + requestName + ` in a folder (default: the current one) asks for, and
agree to it. The yes is to exactly that content: when the file changes, it is
asked for again.`,
		Example: "  carrel policy agree\n  carrel policy agree --hash 5f4d... ~/src/app",
		Args:    needs(arguments(0, 1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, err := currentFolder()
			if len(args) == 1 {
				if folder, err = filepath.Abs(args[0]); err == nil {
					folder, err = filepath.EvalSymlinks(folder)
				}
			}
			if err == nil {
				err = nameable(folder)
			}
			if err != nil {
				return usageError{err}
			}
			return a.doPolicyAgree(cmd.Context(), folder, hash)
		},
	}
	cmd.Flags().StringVar(&hash, "hash", "", "agree without a question, if the content's `SHA-256` is this")
	return cmd
}

func (a *app) doPolicyAgree(ctx context.Context, folder, hash string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if hash != "" {
		return c.AgreePolicy(ctx, folder, hash)
	}
	r, err := c.PolicyRequest(ctx, folder)
	file := filepath.Join(folder, requestName)
	switch {
	case err != nil:
		return err
	case !r.Present:
		return &client.Error{Code: "not_found", Message: "there is no " + file}
	case len(r.Problems) > 0:
		if err := problems(a.err, file, r.Problems); err != nil {
			return err
		}
		return errNo
	case r.Agreed:
		a.note("you have agreed to what " + file + " asks for")
		return nil
	}
	yes, asked := a.askAbout(file, r)
	switch {
	case !asked:
		return &client.Error{Code: "no_terminal", Message: "nobody can be asked: standard input or error is no terminal", Cure: "carrel policy agree --hash " + r.Hash + " " + folder}
	case !yes:
		return errNo
	}
	return c.AgreePolicy(ctx, folder, r.Hash)
}

// askAbout shows what a repository asks for and, on a terminal, asks for a yes.
func (a *app) askAbout(file string, r *api.RequestPolicyResponse) (yes, asked bool) {
	a.warn(file + " asks for:")
	for _, p := range r.GetEgress().GetPresets() {
		fmt.Fprintln(a.err, "  the hosts of preset "+safe(p))
	}
	for _, rule := range r.GetEgress().GetRules() {
		fmt.Fprintln(a.err, "  "+safe(actionWord(rule.Action)+" "+ruleWord(rule)))
	}
	for _, s := range r.GetEgress().GetSecrets() {
		fmt.Fprintln(a.err, "  the use of your secret "+safe(s))
	}
	if !term.IsTerminal(int(a.in.Fd())) || !term.IsTerminal(int(a.err.Fd())) {
		return false, false
	}
	io.WriteString(a.err, "carrel: agree to exactly this? [y/N] ")
	line, _ := bufio.NewReader(io.LimitReader(a.in, 64)).ReadString('\n')
	line = strings.ToLower(strings.TrimSpace(line))
	return line == "y" || line == "yes", true
}

// requests asks, on a terminal, about what the repositories among the shared
// folders would like and nobody has agreed to yet. Elsewhere, and after a no,
// the daemon says that it is not granted.
func (a *app) requests(ctx context.Context, c *client.Client, shares []*api.Share) error {
	if a.quiet || !term.IsTerminal(int(a.in.Fd())) || !term.IsTerminal(int(a.err.Fd())) {
		return nil
	}
	for _, s := range shares {
		r, err := c.PolicyRequest(ctx, s.Path)
		if err != nil || !r.Present || r.Agreed || len(r.Problems) > 0 || !wants(r.Egress) {
			continue // the start has the words for an error
		}
		if yes, _ := a.askAbout(filepath.Join(s.Path, requestName), r); yes {
			if err := c.AgreePolicy(ctx, s.Path, r.Hash); err != nil {
				return err
			}
		}
	}
	return nil
}

// wants says whether a request asks for more than it would have without.
func wants(s *api.EgressSpec) bool {
	if len(s.GetPresets())+len(s.GetSecrets()) > 0 {
		return true
	}
	for _, r := range s.GetRules() {
		if actionWord(r.Action) != "deny" {
			return true
		}
	}
	return false
}
