package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Look at what guests may do, and why",
		Long: `Look at what guests may do, and why. What the user of this machine allows stands in
policy.yaml, in the config folder; without that file guests reach nothing but what
each command allows.`,
		Example: "  carrel policy check policy.yaml\n  carrel policy explain dev\n  carrel policy test dev https://example.org/",
		Args:    needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{errors.New("say what to do: check, explain, test, agree or import")}
		},
	}
	cmd.AddCommand(a.policyCheckCommand(), a.policyExplainCommand(), a.policyTestCommand(), a.policyAgreeCommand(), a.policyImportCommand())
	return cmd
}

// requestName is the file in which a repository says what it would like.
const requestName = ".carrel.yaml"

// maxPolicyFile bounds a policy file, in bytes; the daemon's own bound.
const maxPolicyFile = 1 << 20

func (a *app) policyCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Look for mistakes in a policy file",
		Long: `Look for mistakes in a policy file, or in a repository's ` + requestName + `. The exit
status is 1 if there are some.`,
		Example: "  carrel policy check ~/.config/carrel/policy.yaml\n  carrel policy check " + requestName,
		Args:    needs(arguments(1, 1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.doPolicyCheck(cmd.Context(), args[0]) },
	}
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doPolicyCheck(ctx context.Context, file string) error {
	content, err := readPolicy(file)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	out, err := c.CheckPolicy(ctx, content, filepath.Base(file), filepath.Base(file) == requestName)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(out)
	} else {
		err = problems(a.out, file, out.Problems)
		if err == nil && len(out.Problems) == 0 {
			a.note(file + " has no mistakes: " + counted(len(out.Rules), "rule"))
		}
	}
	if err == nil && len(out.Problems) > 0 {
		err = errNo
	}
	return err
}

// readPolicy reads a policy file, or what is to become one.
func readPolicy(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, usageError{err}
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxPolicyFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxPolicyFile {
		return nil, fmt.Errorf("%s has more than %d bytes, which no policy file may", file, maxPolicyFile)
	}
	return content, nil
}

// problems prints mistakes as compilers do.
func problems(w io.Writer, file string, ps []*api.PolicyProblem) error {
	for _, p := range ps {
		at := safe(file)
		if p.Line > 0 {
			at += fmt.Sprintf(":%d:%d", p.Line, p.Column)
		}
		if _, err := fmt.Fprintln(w, at+": "+safe(p.Text)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) policyExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "explain NAME",
		Short:             "Show the rules in effect for a guest, and where each comes from",
		Example:           "  carrel policy explain dev",
		Args:              names(arguments(1, 1)),
		ValidArgsFunction: guestNames(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.doPolicyExplain(cmd.Context(), args[0]) },
	}
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doPolicyExplain(ctx context.Context, name string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	out, err := c.Egress(ctx, name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	if len(out.Rules) == 0 {
		fmt.Fprintln(a.out, "no rule: guest "+safe(name)+" reaches nothing")
	} else {
		ruleTable(a.table(), out.Rules)
	}
	for _, n := range out.Notes {
		a.note(n)
	}
	return nil
}

// ruleTable shows rules, each in one line.
func ruleTable(w io.Writer, rules []*api.EgressRule) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ACTION\tHOST\tPORTS\tREQUESTS\tLIMITS\tFROM")
	for _, r := range rules {
		ports := joinNumbers(r.Ports)
		switch {
		case ports != "":
		case r.Action == api.EgressAction_EGRESS_ACTION_DENY:
			ports = "every"
		default:
			ports = "443"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", actionWord(r.Action), safe(r.Host), ports, dash(safe(requestsWord(r))), dash(safe(limitsWord(r))), safe(r.Origin))
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shownPaths is how many of a rule's paths a table shows.
const shownPaths = 3

func requestsWord(r *api.EgressRule) string {
	var parts []string
	if len(r.Methods) > 0 {
		parts = append(parts, strings.Join(r.Methods, ","))
	}
	parts = append(parts, r.Paths[:min(len(r.Paths), shownPaths)]...)
	if more := len(r.Paths) - shownPaths; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more (--json)", more))
	}
	if r.Secret != "" {
		parts = append(parts, "secret "+r.Secret)
	}
	return strings.Join(parts, " ")
}

func limitsWord(r *api.EgressRule) string {
	var parts []string
	if r.MaxUpBytes > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes up", r.MaxUpBytes))
	}
	if r.Rate > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes/s", r.Rate))
	}
	for _, f := range []struct {
		word string
		on   bool
	}{{"private", r.Private}, {"wide", r.Wide}, {"inspect", r.Inspect}} {
		if f.on {
			parts = append(parts, f.word)
		}
	}
	return strings.Join(parts, ", ")
}

func (a *app) policyTestCommand() *cobra.Command {
	var method string
	cmd := &cobra.Command{
		Use:   "test [flags] [NAME] URL",
		Short: "Say what would happen to a request, and why",
		Long: `Say what would happen to a request of a guest, and why; nothing is sent. URL may
be https://HOST[:PORT]/PATH or HOST:PORT. Without NAME it is what policy.yaml
alone would say. The exit status is 1 if it is denied.`,
		Example: "  carrel policy test dev https://example.org/file\n  carrel policy test dev --method POST https://api.example.org/v1/x\n  carrel policy test example.org:22",
		Args:    needs(arguments(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 && client.CheckName("guest", args[0]) == nil {
				return usageError{fmt.Errorf("the URL is missing: carrel policy test %s https://HOST/PATH (or, if %s is a host, carrel policy test %s:443)", args[0], args[0], args[0])}
			}
			if len(args) == 2 {
				name, args = args[0], args[1:]
				if err := client.CheckName("guest", name); err != nil {
					return usageError{err}
				}
			}
			return a.doPolicyTest(cmd.Context(), name, strings.ToUpper(method), args[0])
		},
	}
	cmd.Flags().StringVar(&method, "method", "", "the request's `METHOD` (default GET)")
	cmd.Flags().Bool("json", false, "print a JSON object")
	return cmd
}

func (a *app) doPolicyTest(ctx context.Context, name, method, url string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	v, err := c.TestEgress(ctx, name, method, url)
	if err != nil {
		return err
	}
	word := actionWord(v.GetAction())
	if a.json {
		err = a.printJSON(v)
	} else {
		fmt.Fprintln(a.out, word+": "+safe(v.GetReason()))
		if r := v.GetRule(); r != nil {
			fmt.Fprintln(a.out, "  by the rule: "+safe(actionWord(r.Action)+" "+ruleWord(r)+" ("+r.Origin+")"))
		}
		if v.GetInspected() {
			fmt.Fprintln(a.out, "  TLS ends on this machine, so that each request can be judged")
		}
		if v.GetCure() != "" {
			fmt.Fprintln(a.out, "  to change it: "+safe(v.GetCure()))
		}
	}
	if err == nil && word == "deny" {
		err = errNo
	}
	return err
}
