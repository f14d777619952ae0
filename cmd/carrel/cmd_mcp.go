package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/client/mcp"
	"github.com/carrel-vm/carrel/guest/place"
)

type mcpFlags struct {
	specFlags
	ask       []string
	http      string
	tokenFile string
}

func (a *app) mcpCommand() *cobra.Command {
	var f mcpFlags
	cmd := &cobra.Command{
		Use:   "mcp [flags]",
		Short: "Offer a guest to an agent, by the Model Context Protocol",
		Long: `Offer a guest to an agent, by the Model Context Protocol: on standard input and
output, or with --http on this machine's loopback to whoever has the token.

Each session has a guest of its own, made of the flags as for carrel run. It is
started when the agent first needs it, and ends with the session; if its changes
wait for review it is kept for that: carrel diff, carrel apply. With --name the
guest is one that you chose, and goes on running.

What crosses the boundary (apply, allow_host) the agent's program asks you about.`,
		Example: `  carrel mcp install                     into the programs that are here
  carrel mcp -v ~/src/project --preset packages
  carrel mcp --name dev
  carrel mcp --http 127.0.0.1:7411`,
		Args: needs(arguments(0, 0)),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doMCP(cmd.Context(), &f) },
	}
	fs := cmd.Flags()
	f.specFlags.add(fs)
	fs.StringVar(&f.name, "name", "", "the guest's `name`: one that exists, or is made; it goes on running")
	fs.StringArrayVar(&f.ask, "ask", nil, "a `HOST[:PORT]` about which you are asked (carrel egress NAME -f) when it is first reached")
	fs.StringVar(&f.http, "http", "", "serve on `ADDRESS:PORT` of loopback instead; port 0 lets the system choose")
	fs.StringVar(&f.tokenFile, "token-file", "", "the `file` with the token for --http; it is made if it is not there (default mcp-token among the settings)")
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	cmd.AddCommand(a.mcpInstallCommand())
	return cmd
}

func (a *app) doMCP(ctx context.Context, f *mcpFlags) error {
	spec, _, err := f.spec()
	if err != nil {
		return err
	}
	for _, h := range f.ask {
		r, err := hostRule(api.EgressAction_EGRESS_ACTION_ASK, h)
		if err != nil {
			return usageError{fmt.Errorf("--ask: %w", err)}
		}
		if spec.Egress == nil {
			spec.Egress = &api.EgressSpec{}
		}
		spec.Egress.Rules = append(spec.Egress.Rules, r)
	}
	o := mcp.Options{Connect: a.connect, Spec: spec, Notice: a.note}
	if cwd, err := currentFolder(); err == nil {
		o.Dir = guestFolder(spec.Shares, cwd)
	}
	if f.http == "" {
		if f.tokenFile != "" {
			return usageError{errors.New("--token-file is for --http")}
		}
		return mcp.Serve(ctx, &sdk.IOTransport{Reader: a.in, Writer: notClosed{a.out}}, o)
	}
	addr, err := loopback(f.http)
	if err != nil {
		return usageError{err}
	}
	file := f.tokenFile
	if file == "" {
		p, err := place.Home()
		if err != nil {
			return err
		}
		file = filepath.Join(p.Config, "mcp-token")
	}
	token, err := readToken(file)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	a.note("the token is in " + file)
	if _, err := fmt.Fprintf(a.out, "http://%s%s\n", ln.Addr(), mcp.Path); err != nil {
		ln.Close()
		return err
	}
	return mcp.ServeHTTP(ctx, ln, token, o)
}

// notClosed is the standard output, which outlives a session.
type notClosed struct{ io.Writer }

func (notClosed) Close() error { return nil }

// loopback checks ADDRESS:PORT, where only numbers count: what a name leads to is
// somebody else's to say.
func loopback(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("--http %.100q is not ADDRESS:PORT, such as 127.0.0.1:7411", s)
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", fmt.Errorf("--http %.100q: only loopback is served, such as 127.0.0.1:%.5s", s, port)
	}
	return net.JoinHostPort(host, port), nil
}

// readToken returns the token in a file that nobody else can read, and makes both
// if there is none.
func readToken(file string) (string, error) {
	bad := func(why, cure string) (string, error) {
		return "", &client.Error{Code: "bad_token", Message: "read the token in " + file, Cause: why, Cure: cure}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		token := rand.Text()
		_, err = f.WriteString(token + "\n")
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return token, err
	case !errors.Is(err, fs.ErrExist):
		return "", err
	}
	fi, err := os.Lstat(file)
	switch {
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular():
		return bad("it is not a regular file", "remove it, and a new one is made")
	case runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0:
		return bad(fmt.Sprintf("it has mode %04o, so that others can read it", fi.Mode().Perm()), "remove it, and a new one is made")
	case fi.Size() > 4<<10:
		return bad("it has more than 4096 bytes", "remove it, and a new one is made")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return bad("it is no token: at least 16 characters of ASCII without spaces", "remove it, and a new one is made")
	}
	return token, nil
}
