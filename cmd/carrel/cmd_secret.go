package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// maxSecret bounds what is read of a value; the daemon has the rule.
const maxSecret = 64 << 10

// secretFlags say where a secret may go, and how.
type secretFlags struct {
	preset, header, basic, env          string
	bearer                              bool
	hosts, methods, paths, repositories []string
	pass, refuse                        []string
	ports                               []uint
}

func (a *app) secretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Keep credentials on the host, and say where they may go",
		Long: `A secret is a credential that no guest ever holds. It is added to requests
outside the guest, only to the hosts, methods and paths of its definition, and
only when the server has proved over TLS who it is. The guest sees a placeholder.`,
		Example: "  carrel secret set anthropic\n  carrel run --secret anthropic -- ./agent",
		Args:    needs(arguments(0, 0)),
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do with secrets: set, ls or rm")}
		},
	}
	ls := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List secrets, never their values", Example: "  carrel secret ls --json",
		Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doSecretLs(cmd.Context()) },
	}
	ls.Flags().Bool("json", false, "print a JSON array")
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Forget secrets; the next request has none", Example: "  carrel secret rm anthropic",
		Args: named("secret", arguments(1, many)), ValidArgsFunction: secretNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ctx context.Context, c *client.Client, name string) error { return c.RemoveSecret(ctx, name) })
		},
	}
	cmd.AddCommand(a.secretSetCommand(), ls, rm)
	return cmd
}

func (a *app) secretSetCommand() *cobra.Command {
	f := new(secretFlags)
	set := &cobra.Command{
		Use:   "set NAME",
		Short: "Keep a credential: its value comes by a hidden prompt, or stdin",
		Long: `Keep a credential. On a terminal its value is asked for and not shown; otherwise
it is read from stdin. It is never an argument, where other programs could see it.

With --for, or with a NAME that is one of them, a ready-made definition is used:
anthropic, openai, github (with --repository), npm, pypi. A definition of your
own names hosts, methods, paths and the kind of credential. Set again without
flags, a secret keeps its definition and gets the new value.`,
		Example: `  carrel secret set anthropic
  carrel secret set work --for github --repository octo/tools < token.txt
  carrel secret set ci --host ci.example.org --header x-ci-token --method GET \
      --path '/api/v2/**' --env CI_TOKEN`,
		Args: named("secret", arguments(1, 1)), ValidArgsFunction: secretNames,
		RunE: func(cmd *cobra.Command, args []string) error { return a.doSecretSet(cmd.Context(), args[0], f) },
	}
	fs := set.Flags()
	fs.StringVar(&f.preset, "for", "", "a ready-made `definition`: anthropic, openai, github, npm or pypi")
	fs.StringArrayVar(&f.hosts, "host", nil, "a `host` that gets it (repeatable; exact names)")
	fs.UintSliceVar(&f.ports, "port", nil, "a `port` of these hosts (default 443)")
	fs.Lookup("port").DefValue = "" // "[]" would say nothing
	fs.StringVar(&f.header, "header", "", "send it as this `header`")
	fs.BoolVar(&f.bearer, "bearer", false, "send it as a bearer token")
	fs.StringVar(&f.basic, "basic", "", "send it as the password of this `user`")
	fs.StringSliceVar(&f.methods, "method", nil, "a `method` that may be used (repeatable)")
	fs.StringArrayVar(&f.paths, "path", nil, "a `pattern` of paths: * is any run but /, ** any run (repeatable)")
	fs.StringVar(&f.env, "env", "", "the `variable` in which tasks see the placeholder")
	fs.StringArrayVar(&f.repositories, "repository", nil, "for github: an `OWNER/NAME` that may be touched (repeatable)")
	fs.StringArrayVar(&f.pass, "pass-header", nil, "a request `header` that may pass beside the usual ones (repeatable)")
	fs.StringArrayVar(&f.refuse, "refuse-field", nil, "a `field` of JSON bodies that is refused (repeatable; docs/secrets.md)")
	fs.Bool("json", false, "print what is kept, but the value, as a JSON object")
	return set
}

// definition is nil if no flag says anything.
func (f *secretFlags) definition() (*api.SecretDefinition, error) {
	d := &api.SecretDefinition{Preset: f.preset, Hosts: f.hosts, Header: f.header, User: f.basic, Methods: f.methods, Paths: f.paths, Env: f.env,
		PassHeaders: f.pass, RefuseFields: f.refuse, Repositories: f.repositories}
	kinds := 0
	for _, k := range []struct {
		given bool
		kind  api.SecretKind
	}{{f.header != "", api.SecretKind_SECRET_KIND_HEADER}, {f.bearer, api.SecretKind_SECRET_KIND_BEARER}, {f.basic != "", api.SecretKind_SECRET_KIND_BASIC}} {
		if k.given {
			kinds++
			d.Kind = k.kind
		}
	}
	if kinds > 1 {
		return nil, usageError{errors.New("--header, --bearer and --basic exclude each other")}
	}
	for _, p := range f.ports {
		if p == 0 || p > 65535 {
			return nil, usageError{fmt.Errorf("%d is not a port", p)}
		}
		d.Ports = append(d.Ports, uint32(p))
	}
	if f.preset == "" && kinds == 0 && slices.Concat(f.hosts, f.methods, f.paths, f.repositories, f.pass, f.refuse) == nil && f.env == "" && len(f.ports) == 0 {
		return nil, nil
	}
	return d, nil
}

func (a *app) doSecretSet(ctx context.Context, name string, f *secretFlags) error {
	d, err := f.definition()
	if err != nil {
		return err
	}
	if d != nil && d.Preset == "" && len(d.Hosts) == 0 && len(d.Repositories) > 0 {
		d.Preset = "github" // nothing else has repositories
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	value, err := a.readSecret(ctx, name)
	if err != nil {
		return err
	}
	defer clear(value)
	s, err := c.SetSecret(ctx, name, d, value)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	if s.Store == "file" {
		a.note("the value is not in a keychain but in the encrypted file secrets.age, whose key lies beside it; programs that run as you can read it (docs/secrets.md)")
	}
	a.note(fmt.Sprintf("secret %s is kept for %s: carrel run --secret %s -- COMMAND", s.Name, strings.Join(s.GetDefinition().GetHosts(), ", "), s.Name))
	return nil
}

// readSecret asks for a value without showing it, or reads stdin to its end. One
// newline at the end is not part of it.
func (a *app) readSecret(ctx context.Context, name string) ([]byte, error) {
	fd := int(a.in.Fd())
	if !term.IsTerminal(fd) {
		b, err := io.ReadAll(io.LimitReader(a.in, maxSecret+3))
		if err != nil {
			return nil, fmt.Errorf("read the value from stdin: %w", err)
		}
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
		if len(b) == 0 {
			return nil, usageError{errors.New("stdin holds no value: give it there, or run this on a terminal to be asked")}
		}
		return b, nil
	}
	// The terminal shows nothing more before it asks: who types at once is not seen.
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the value on this terminal: %w", err)
	}
	defer term.Restore(fd, old)
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		t := term.NewTerminal(struct {
			io.Reader
			io.Writer
		}{a.in, a.err}, "")
		line, err := t.ReadPassword(fmt.Sprintf("value of %s (it is not shown): ", name))
		read <- answer{line, err}
	}()
	var b []byte
	select {
	case r := <-read: // Control-C and Control-D are io.EOF
		b, err = []byte(r.line), r.err
	case <-ctx.Done(): // a signal; the program ends, and the read with it
		err = context.Cause(ctx)
		fmt.Fprint(a.err, "\r\n")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the value from the terminal: %w", err)
	}
	if len(b) == 0 {
		return nil, usageError{errors.New("no value was given, and nothing was changed")}
	}
	return b, nil
}

func (a *app) doSecretLs(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ss, err := c.Secrets(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return printArray(a, ss)
	}
	return secretTable(a.table(), ss)
}

func secretTable(w io.Writer, ss []*api.Secret) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tFOR\tHOSTS\tSENT AS\tVARIABLE\tSTORE\tSET")
	for _, s := range ss {
		d := s.GetDefinition()
		what := d.GetPreset()
		if len(d.GetRepositories()) > 0 {
			what += " " + strings.Join(d.Repositories, " ")
		}
		set := "-"
		if s.Updated != nil {
			set = s.Updated.AsTime().Local().Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", safe(s.Name), clip(safe(orDash(what)), 40), clip(safe(strings.Join(d.GetHosts(), " ")), 40), safe(sentAs(d)), safe(orDash(d.GetEnv())), safe(s.Store), set)
	}
	return t.Flush()
}

func sentAs(d *api.SecretDefinition) string {
	switch d.GetKind() {
	case api.SecretKind_SECRET_KIND_BEARER:
		return "bearer"
	case api.SecretKind_SECRET_KIND_BASIC:
		return "basic " + d.User
	}
	return d.GetHeader()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// secretNames completes names of secrets.
func secretNames(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return complete((*client.Client).Secrets, func(s *api.Secret) (name, about string) {
		return s.Name, strings.Join(s.GetDefinition().GetHosts(), ", ")
	})
}
