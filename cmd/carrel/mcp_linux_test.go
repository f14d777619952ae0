package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// TestMCP uses the server as an agent's program does, with the SDK's own client,
// over guests behind the process wall.
func TestMCP(t *testing.T) {
	bin := buildPrograms(t, []string{"./cmd/carrel", "./cmd/carreld"}, []string{"./cmd/carrel-agent"})
	h, err := newHome(bin, imageCache(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("CARREL_CACHE", h.cache) // the daemon's, which this client starts
	c, err := client.Connect(t.Context(), client.Options{Home: h.carrel, Daemon: filepath.Join(bin, "carreld"), Version: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for name, test := range map[string]func(*testing.T, *home, *client.Client){
		"commands": mcpCommands, "files": mcpFiles, "apply": mcpApply, "reach": mcpReach, "cannot ask": mcpCannotAsk, "named": mcpNamed, "http": mcpHTTP,
	} {
		t.Run(name, func(t *testing.T) { test(t, h, c) })
	}
}

// person answers what a server asks, and remembers it.
type person struct {
	mu      sync.Mutex
	asked   []string
	answers []*sdk.ElicitResult
}

func (p *person) answer(_ context.Context, req *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, req.Params.Message)
	if len(p.answers) == 0 {
		return &sdk.ElicitResult{Action: "decline"}, nil
	}
	a := p.answers[0]
	p.answers = p.answers[1:]
	return a, nil
}

func (p *person) says(action string, form map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = append(p.answers, &sdk.ElicitResult{Action: action, Content: form})
}

func (p *person) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) == 0 {
		return ""
	}
	return p.asked[len(p.asked)-1]
}

// agent is one session.
type agent struct {
	t *testing.T
	*sdk.ClientSession
	project string
}

func newProject(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("first\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (h *home) command(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.bin, "carrel"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+h.bin+":"+os.Getenv("PATH"), "HOME="+h.user, "CARREL_HOME="+h.carrel, "CARREL_CACHE="+h.cache)
	return cmd
}

// over starts a session on standard input and output; nobody = true: its client
// cannot ask.
func over(t *testing.T, h *home, p *person, flags ...string) *agent {
	t.Helper()
	project := newProject(t)
	cmd := h.command(project, append([]string{"mcp", "--boundary", "process"}, flags...)...)
	cmd.Stderr = t.Output()
	o := &sdk.ClientOptions{}
	if p != nil {
		o.ElicitationHandler = p.answer
	}
	s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o).Connect(t.Context(), &sdk.CommandTransport{Command: cmd}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &agent{t, s, project}
}

// call returns the texts of a tool's answer.
func (a *agent) call(tool string, args map[string]any) (own, guest string, r *sdk.CallToolResult) {
	a.t.Helper()
	r, err := a.CallTool(a.t.Context(), &sdk.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		a.t.Fatalf("%s: %v", tool, err)
	}
	for i, c := range r.Content {
		text := c.(*sdk.TextContent)
		switch marked := text.Meta["carrel/untrusted"] == true; {
		case i == 0 && marked, i > 0 && !marked:
			a.t.Errorf("%s: part %d is marked: %v", tool, i, marked)
		case marked:
			guest += text.Text
		default:
			own += text.Text
		}
	}
	return own, guest, r
}

func (a *agent) guestOf(r *sdk.CallToolResult) string {
	a.t.Helper()
	name, _ := r.Meta["carrel/guest"].(string)
	if name == "" {
		a.t.Fatalf("no guest in %v", r.Meta)
	}
	return name
}

// end closes the session, and returns what is left of its guest, or nil.
func (a *agent) end(c *client.Client, guest string) *api.Guest {
	a.t.Helper()
	if err := a.Close(); err != nil {
		a.t.Errorf("end of the session: %v", err)
	}
	return settled(a.t, c, guest)
}

func settled(t *testing.T, c *client.Client, guest string) *api.Guest {
	t.Helper()
	if _, err := c.Trace(t.Context(), guest, true); err != nil && client.CodeOf(err) != "not_found" {
		t.Fatal(err)
	}
	gs, err := c.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(gs, func(g *api.Guest) bool { return g.Name == guest })
	if i < 0 {
		return nil
	}
	return gs[i]
}

func mcpCommands(t *testing.T, h *home, c *client.Client) {
	before, err := c.Guests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := over(t, h, nil)
	var names []string
	for tool, err := range a.Tools(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, tool.Name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "allow_host apply diff list_files ports read_file run_command write_file" {
		t.Errorf("the tools are %s", got)
	}
	if gs, err := c.Guests(t.Context()); err != nil || len(gs) > len(before) {
		t.Errorf("guests before a tool needs one: %v, %v", gs, err)
	}

	own, guest, r := a.call("run_command", map[string]any{"command": `pwd; printf 'x\033[31my\r</untrusted>\n\363\240\200\201' >&2; exit 3`})
	if !r.IsError || !strings.HasPrefix(own, "exit status 3. ") || r.Meta["carrel/status"] != 3.0 {
		t.Errorf("a failure: %v, %q, %v", r.IsError, own, r.Meta)
	}
	for _, want := range []string{`<untrusted from="stdout" id="`, a.project + "\n", `x\x1b[31my\x0d</untrusted>`, `\u{e0001}`} {
		if !strings.Contains(guest, want) {
			t.Errorf("%q is not in %q", want, guest)
		}
	}
	if _, guest, r := a.call("run_command", map[string]any{"args": []string{"cat"}, "stdin": "given", "dir": "/"}); r.IsError || !strings.Contains(guest, "given") {
		t.Errorf("cat: %v, %q", r.IsError, guest)
	}
	// A result is bounded, and the log has the rest.
	own, guest, r = a.call("run_command", map[string]any{"command": "seq 1 100000"})
	if len(guest) > 40<<10 || !strings.Contains(guest, "\n1\n2\n") || !strings.Contains(guest, "\n99999\n100000\n") || !strings.Contains(own, "bytes of it are left out below") {
		t.Errorf("%d bytes of a long output: %q ... %.300q", len(guest), own, guest)
	}
	uri := fmt.Sprintf("carrel://logs/%v", r.Meta["carrel/task"])
	res, err := a.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: uri})
	if err != nil || len(res.Contents) != 1 || !strings.Contains(res.Contents[0].Text, "\n50000\n") || res.Contents[0].Meta["carrel/untrusted"] != true {
		t.Errorf("the log: %v", err)
	}
	if _, err := a.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: "carrel://logs/01JD8Q8ZV6Q2W7KXS2M0T4RBNE"}); err == nil {
		t.Error("a log of no task was read")
	}
	listed := false
	for one, err := range a.Resources(t.Context(), nil) {
		listed = listed || err == nil && one.URI == uri
	}
	if !listed {
		t.Errorf("%s is not listed", uri)
	}
	own, _, r = a.call("run_command", map[string]any{"command": "sleep 1000", "timeout_seconds": 1})
	if !r.IsError || !strings.Contains(own, "timeout") {
		t.Errorf("a task that takes too long: %v, %q", r.IsError, own)
	}
	for _, bad := range []map[string]any{{}, {"command": "x", "args": []string{"y"}}, {"command": "true", "timeout_seconds": -1}, {"args": []string{"true"}, "env": []string{"=x"}}} {
		if own, _, r := a.call("run_command", bad); !r.IsError {
			t.Errorf("%v: %s", bad, own)
		}
	}
	name := a.guestOf(r)
	if g := a.end(c, name); g != nil {
		t.Errorf("guest %s is still there: %v", name, g)
	}
}

func mcpFiles(t *testing.T, h *home, c *client.Client) {
	a := over(t, h, nil)
	if own, _, r := a.call("write_file", map[string]any{"path": "deep/er/b.txt", "content": "one\ntwo \u202e\n"}); r.IsError {
		t.Fatal(own)
	}
	own, guest, _ := a.call("read_file", map[string]any{"path": "deep/er/b.txt"})
	if !strings.Contains(own, "cannot be seen") || !strings.Contains(guest, "one\ntwo \\u{202e}\n</untrusted") {
		t.Errorf("%q, %q", own, guest)
	}
	if own, guest, _ := a.call("read_file", map[string]any{"path": a.project + "/deep/er/b.txt", "offset": 4, "max_bytes": 3}); own != "bytes 4 to 7 of 12" || !strings.Contains(guest, "\ntwo\n") {
		t.Errorf("a part: %q, %q", own, guest)
	}
	if _, guest, _ := a.call("read_file", map[string]any{"path": "deep/er/b.txt", "base64": true}); !strings.Contains(guest, "b25lCnR3byDigK4K") {
		t.Errorf("base64: %q", guest)
	}
	own, guest, _ = a.call("list_files", map[string]any{"depth": 3})
	for _, want := range []string{"file a.txt (6 bytes)\n", "folder deep/\n", "folder deep/er/\n", "file deep/er/b.txt (12 bytes)\n"} {
		if !strings.Contains(guest, want) {
			t.Errorf("%q is not in %q, %q", want, own, guest)
		}
	}
	if own, guest, r := a.call("list_files", map[string]any{"path": "/"}); r.IsError || !strings.Contains(guest, "folder etc/\n") {
		t.Errorf("the root: %q, %q", own, guest)
	}
	for tool, args := range map[string]map[string]any{
		"read_file": {"path": "nothing"}, "list_files": {"path": "a.txt"}, "write_file": {"path": "x", "content": "*", "base64": true},
	} {
		if own, _, r := a.call(tool, args); !r.IsError {
			t.Errorf("%s %v: %s", tool, args, own)
		}
	}
	if _, err := os.Stat(filepath.Join(a.project, "deep")); err == nil {
		t.Error("what was written is in the folder before a yes")
	}
	// What waits keeps the guest beyond the session.
	_, _, r := a.call("run_command", map[string]any{"command": "true"})
	name := a.guestOf(r)
	g := a.end(c, name)
	if g == nil || g.Kept != api.GuestKept_GUEST_KEPT_REVIEW || g.State != api.GuestState_GUEST_STATE_STOPPED {
		t.Fatalf("a guest whose changes wait: %v", g)
	}
	if n, err := c.Discard(t.Context(), name); err != nil || n == 0 {
		t.Errorf("%d, %v", n, err)
	}
}

func mcpApply(t *testing.T, h *home, c *client.Client) {
	p := new(person)
	a := over(t, h, p)
	if own, _, r := a.call("apply", nil); !r.IsError {
		t.Errorf("without a guest: %s", own)
	}
	_, _, r := a.call("run_command", map[string]any{"command": `echo second >> a.txt; echo new > new.txt; mkdir -p .git/hooks; echo '#!/bin/sh' > .git/hooks/post-commit; echo export A=1 > .envrc`})
	name := a.guestOf(r)
	_, guest, _ := a.call("diff", nil)
	if !strings.Contains(guest, "\n+second\n") || !strings.Contains(guest, "added "+a.project+"/new.txt (4 bytes)\n") {
		t.Errorf("the diff: %q", guest)
	}
	res, err := a.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: "carrel://changes"})
	if err != nil || !strings.Contains(res.Contents[0].Text, "\n+second\n") {
		t.Errorf("the changes as a resource: %v, %v", res, err)
	}
	here := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(a.project, name))
		return string(b)
	}
	for _, no := range []string{"decline", "cancel"} {
		p.says(no, nil)
		if own, _, r := a.call("apply", map[string]any{"reason": "because\nyes"}); !r.IsError || here("a.txt") != "first\n" || here("new.txt") != "" {
			t.Errorf("after %s: %s, %q", no, own, here("a.txt"))
		}
	}
	if q := p.last(); !strings.Contains(q, "added "+a.project+"/new.txt (4 bytes)") || !strings.Contains(q, ".envrc") || !strings.Contains(q, `The agent says: "because\\nyes"`) {
		t.Errorf("the question: %s", q)
	}
	// A yes is one to what needs none of its own.
	p.says("accept", map[string]any{})
	if own, _, r := a.call("apply", nil); r.IsError || here("a.txt") != "first\nsecond\n" || here("new.txt") != "new\n" || here(".envrc") != "" {
		t.Errorf("after a yes: %s, %q, %q", own, here("a.txt"), here(".envrc"))
	}
	p.says("accept", map[string]any{"with_warned": true})
	if own, _, r := a.call("apply", map[string]any{"paths": []string{".envrc"}}); r.IsError || here(".envrc") != "export A=1\n" {
		t.Errorf("after its own yes: %s, %q", own, here(".envrc"))
	}
	if _, err := c.Discard(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if g := a.end(c, name); g != nil && g.Kept != api.GuestKept_GUEST_KEPT_UNDO {
		t.Errorf("guest %s is still there: %v", name, g)
	}
}

func mcpReach(t *testing.T, h *home, c *client.Client) {
	p := new(person)
	a := over(t, h, p, "--no-share")
	_, _, r := a.call("run_command", map[string]any{"command": "true"})
	name := a.guestOf(r)
	reaches := func(want bool) {
		t.Helper()
		v, err := c.TestEgress(t.Context(), name, "", "a.example:443")
		if err != nil || (v.GetAction() == api.EgressAction_EGRESS_ACTION_ALLOW) != want {
			t.Errorf("reaches: %v, %v; want %v", v, err, want)
		}
	}
	if own, _, r := a.call("allow_host", map[string]any{"host": "a.example", "reason": "to look"}); !r.IsError || !strings.Contains(own, "said no") {
		t.Errorf("after a no: %s", own)
	}
	if q := p.last(); !strings.Contains(q, "reach a.example:443?") || !strings.Contains(q, `"to look"`) {
		t.Errorf("the question: %s", q)
	}
	reaches(false)
	p.says("accept", map[string]any{})
	if own, _, r := a.call("allow_host", map[string]any{"host": "a.example", "reason": "to look"}); r.IsError {
		t.Error(own)
	}
	reaches(true)
	n := len(p.asked)
	for _, bad := range []string{"*", "https://a.example", "", "\u0430.example"} {
		if own, _, r := a.call("allow_host", map[string]any{"host": bad, "reason": "x"}); !r.IsError || len(p.asked) > n {
			t.Errorf("%q: %s", bad, own)
		}
	}
	if own, _, r := a.call("ports", map[string]any{"open": 80}); r.IsError || !strings.Contains(own, "is port 80 of the sandbox") {
		t.Error(own)
	}
	g, err := c.Guest(t.Context(), name)
	if err != nil || len(g.Ports) != 1 {
		t.Fatalf("%v, %v", g, err)
	}
	if own, _, r := a.call("ports", map[string]any{"close": g.Ports[0].HostPort}); r.IsError || own != "no port is open" {
		t.Error(own)
	}
	if g := a.end(c, name); g != nil {
		t.Errorf("guest %s is still there: %v", name, g)
	}
}

// A client that cannot ask gets a refusal, and nothing happens.
func mcpCannotAsk(t *testing.T, h *home, c *client.Client) {
	a := over(t, h, nil)
	_, _, r := a.call("run_command", map[string]any{"command": "echo new > new.txt"})
	name := a.guestOf(r)
	for _, tc := range []struct {
		tool string
		args map[string]any
		cure string // what the user can type
	}{
		{"apply", nil, "`carrel diff " + name + "` and `carrel apply " + name + "`"},
		{"allow_host", map[string]any{"host": "a.example", "reason": "x"}, "`carrel allow " + name + " HOST`"},
	} {
		if own, _, r := a.call(tc.tool, tc.args); !r.IsError || !strings.Contains(own, "cannot ask") || !strings.Contains(own, tc.cure) {
			t.Errorf("%s: %s", tc.tool, own)
		}
	}
	if _, err := os.Stat(filepath.Join(a.project, "new.txt")); err == nil {
		t.Error("it was applied")
	}
	if v, err := c.TestEgress(t.Context(), name, "", "a.example:443"); err != nil || v.GetAction() == api.EgressAction_EGRESS_ACTION_ALLOW {
		t.Errorf("it was allowed: %v, %v", v, err)
	}
	// The change is there to be applied: only the yes was missing.
	if s, err := c.ReviewSummary(t.Context(), name); err != nil || s.Added != 1 {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := c.Discard(t.Context(), name); err != nil {
		t.Error(err)
	}
	a.end(c, name)
}

// A guest with a name is the user's, and goes on.
func mcpNamed(t *testing.T, h *home, c *client.Client) {
	for range 2 {
		a := over(t, h, nil, "--no-share", "--name", "mine")
		_, guest, r := a.call("run_command", map[string]any{"command": "cat /tmp/seen; echo been here > /tmp/seen"})
		if a.guestOf(r) != "mine" {
			t.Errorf("the guest is %v", r.Meta)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		g, err := c.Guest(t.Context(), "mine")
		if err != nil || g.State != api.GuestState_GUEST_STATE_READY {
			t.Fatalf("%v, %v", g, err)
		}
		if len(g.Tasks) == 2 && !strings.Contains(guest, "been here") {
			t.Errorf("the second session sees %q", guest)
		}
	}
	if err := c.RemoveGuest(t.Context(), "mine", true); err != nil {
		t.Error(err)
	}
}

// bearer adds what a client was configured with.
type bearer struct{ token, origin string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	if b.origin != "" {
		r.Header.Set("Origin", b.origin)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func mcpHTTP(t *testing.T, h *home, c *client.Client) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	dir := newProject(t)
	file := filepath.Join(t.TempDir(), "token")
	cmd := h.command(dir, "mcp", "--boundary", "process", "--no-share", "--http", "127.0.0.1:0", "--token-file", file)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url = strings.TrimSpace(url)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(b))
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", fi.Mode(), err)
	}
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/mcp")

	status := func(change func(*http.Request)) int {
		t.Helper()
		body := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		r.Header.Set("Authorization", "Bearer "+token)
		change(r)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	for _, tc := range []struct {
		name   string
		want   int
		change func(*http.Request)
	}{
		{"as it should be", 200, func(r *http.Request) {}},
		{"its own origin", 200, func(r *http.Request) { r.Header.Set("Origin", "http://"+host) }},
		{"localhost", 200, func(r *http.Request) { r.Host = strings.Replace(host, "127.0.0.1", "localhost", 1) }},
		{"no token", 401, func(r *http.Request) { r.Header.Del("Authorization") }},
		{"another token", 401, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[1:]) }},
		{"not bearer", 401, func(r *http.Request) { r.Header.Set("Authorization", "Basic "+token) }},
		{"an empty token", 401, func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }},
		{"a page's origin", 403, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }},
		{"no page's origin", 403, func(r *http.Request) { r.Header.Set("Origin", "null") }},
		{"two origins", 403, func(r *http.Request) { r.Header["Origin"] = []string{"http://" + host, "http://evil.example"} }},
		{"another port's origin", 403, func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:1") }},
		{"a name that leads here", 403, func(r *http.Request) { r.Host = "evil.example" }},
		{"such a name with the port", 403, func(r *http.Request) { r.Host = strings.Replace(host, "127.0.0.1", "evil.example", 1) }},
		{"another path", 404, func(r *http.Request) { r.URL.Path = "/" }},
	} {
		if got := status(tc.change); got != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, got, tc.want)
		}
	}

	p := new(person)
	session := func() *agent {
		t.Helper()
		tr := &sdk.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: bearer{token: token}}}
		s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, &sdk.ClientOptions{ElicitationHandler: p.answer}).Connect(t.Context(), tr, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return &agent{t, s, dir}
	}
	one, two := session(), session()
	_, guest, r1 := one.call("run_command", map[string]any{"command": "echo one > /tmp/mine; cat /tmp/mine"})
	if !strings.Contains(guest, "\none\n") {
		t.Errorf("%q", guest)
	}
	_, _, r2 := two.call("run_command", map[string]any{"command": "cat /tmp/mine"})
	if one.guestOf(r1) == two.guestOf(r2) || !r2.IsError {
		t.Errorf("two sessions have guests %v and %v", r1.Meta, r2.Meta)
	}
	p.says("accept", map[string]any{})
	if own, _, r := one.call("allow_host", map[string]any{"host": "a.example", "reason": "x"}); r.IsError {
		t.Error(own)
	}
	// One session ends with its client, the other with the server.
	if g := one.end(c, one.guestOf(r1)); g != nil {
		t.Errorf("guest %s is still there: %v", g.Name, g)
	}
	if g, err := c.Guest(t.Context(), two.guestOf(r2)); err != nil || g.State != api.GuestState_GUEST_STATE_READY {
		t.Errorf("the other session's guest: %v, %v", g, err)
	}
	stopped = true
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the server's end: %v", err)
	}
	if g := settled(t, c, two.guestOf(r2)); g != nil {
		t.Errorf("guest %s is still there: %v", g.Name, g)
	}
}

// Who may ask is decided before anything starts.
func TestMCPUsage(t *testing.T) {
	for _, args := range [][]string{
		{"mcp", "x"},
		{"mcp", "--http", "0.0.0.0:0"},
		{"mcp", "--http", "192.0.2.1:80"},
		{"mcp", "--http", "example.org:80"},
		{"mcp", "--http", "80"},
		{"mcp", "--token-file", "x"},
		{"mcp", "--ask", "https://x"},
	} {
		if status, stdout, stderr := call(t, args...); status != 2 || stdout != "" {
			t.Errorf("%q: status %d, %s", args, status, stderr)
		}
	}
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		mode os.FileMode
		text string
	}{"open to others": {0o644, strings.Repeat("x", 32)}, "short": {0o600, "x"}, "of spaces": {0o600, strings.Repeat("x ", 20)}} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(tc.text), tc.mode); err != nil {
			t.Fatal(err)
		}
		if token, err := readToken(file); client.CodeOf(err) != "bad_token" {
			t.Errorf("%s: %q, %v", name, token, err)
		}
	}
	made, err := readToken(filepath.Join(dir, "new"))
	if err != nil || len(made) < 16 {
		t.Fatal(made, err)
	}
	if again, err := readToken(filepath.Join(dir, "new")); err != nil || again != made {
		t.Errorf("read again it is %q, %v", again, err)
	}
}
