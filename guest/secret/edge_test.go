package secret

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/carrel-vm/carrel/guest/api"
)

const value = "sk-live-4f2c/9a+71~b0e55d==7cZ"

// edge returns an edge with one secret of each preset, and one of its own.
func edge(t testing.TB) *Edge {
	t.Helper()
	var list []*api.EdgeSecret
	for _, p := range Presets() {
		d := &api.SecretDefinition{Preset: p}
		if p == "github" {
			d.Repositories = []string{"octo/tools"}
		}
		list = append(list, edgeSecret(t, p, d, value+p))
	}
	list = append(list, edgeSecret(t, "own", &api.SecretDefinition{
		Hosts: []string{"api.example.org"}, Kind: api.SecretKind_SECRET_KIND_HEADER, Header: "X-Key", Methods: []string{"get", "POST"}, Paths: []string{"/**"}, Env: "OWN",
		PassHeaders: []string{"x-trace-id"},
	}, value+"own"))
	e, err := NewEdge(list)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func edgeSecret(t testing.TB, name string, d *api.SecretDefinition, v string) *api.EdgeSecret {
	t.Helper()
	c, err := Complete(name, d)
	if err != nil {
		t.Fatal(err)
	}
	return &api.EdgeSecret{Name: name, Definition: c, Value: []byte(v)}
}

func request(method, target, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	if body != "" {
		r = httptest.NewRequest(method, target, strings.NewReader(body))
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1]) // as spelled
	}
	return r
}

func reason(err error) string {
	var r *Refused
	if errors.As(err, &r) {
		return r.Reason
	}
	return fmt.Sprintf("not a refusal: %v", err)
}

// TestForeignCredentials is C03: whatever credential the guest sends, only ours
// arrives.
func TestForeignCredentials(t *testing.T) {
	e := edge(t)
	const attacker = "sk-ant-attacker-0123456789"
	r := request("POST", "https://api.anthropic.com/v1/messages?beta=true", `{"model":"m"}`,
		"X-Api-Key", attacker, "x-api-key", attacker, "X_api_key", attacker, "X-API_Key", attacker, "X-Goog-Api-Key", attacker, "Api-Key", attacker,
		"Authorization", "Bearer "+attacker, "authorization", attacker, "Proxy-Authorization", "Basic "+attacker, "Cookie", "s="+attacker, "X-Auth-Token", attacker,
		"X-Amz-Security-Token", attacker, "Anthropic-Workspace", attacker, "X-Unknown", attacker, "Connection", attacker, "Upgrade", "websocket", "Trailer", attacker,
		"Content-Type", "application/json", "Accept", "text/event-stream", "User-Agent", "tool/1", "Anthropic-Version", "2023-06-01")
	r.Trailer = http.Header{"X-Api-Key": {attacker}}
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"X-Api-Key": {value + "anthropic"}, "Content-Type": {"application/json"}, "Accept": {"text/event-stream"}, "User-Agent": {"tool/1"}, "Anthropic-Version": {"2023-06-01"}}
	if !maps.EqualFunc(r.Header, want, slices.Equal[[]string]) || r.Trailer != nil {
		t.Errorf("what leaves: %v and trailers %v", r.Header, r.Trailer)
	}
	// Control: without the edge the attacker's key is what the server would see.
	if r := request("POST", "https://api.anthropic.com/v1/files", "x", "X-Api-Key", attacker); r.Header.Get("x-api-key") != attacker {
		t.Error("the control does not hold the attacker's key")
	}
}

// TestForeignCredentialsBesideTheSecret is C03 where another rule opens more of a
// secret's host: the Files API with the attacker's key, under whatever name.
// Another host, of which no secret knows, is the control.
func TestForeignCredentialsBesideTheSecret(t *testing.T) {
	e := edge(t)
	const attacker = "sk-ant-attacker-0123456789"
	for _, port := range []uint16{443, 80, 8443} {
		for host, passes := range map[string]bool{"api.anthropic.com": false, "api.example.org": false, "files.example.org": true} {
			for _, name := range []string{"X-Api-Key", "Authorization", "Ocp-Apim-Subscription-Key", "X-Functions-Key", "X_Access", "Cookie", "X-Unknown"} {
				r := request("POST", "https://"+host+"/v1/files", "x", name, attacker, "Content-Type", "text/plain")
				r.Trailer = http.Header{name: {attacker}}
				err := e.Outgoing(r, host, port, "")
				if got := strings.Contains(fmt.Sprint(r.Header, r.Trailer), attacker); err != nil || got != passes || r.Header.Get("Content-Type") != "text/plain" {
					t.Errorf("%s:%d %s: %v, headers %v", host, port, name, err, r.Header)
				}
				if strings.Contains(fmt.Sprint(r.Header), value) {
					t.Errorf("%s:%d: the credential was added", host, port)
				}
			}
			r := request("POST", "https://"+host+"/v1/files?auth_key="+attacker, "x")
			if err := e.Outgoing(r, host, port, ""); (err == nil) != passes {
				t.Errorf("%s:%d, in the query: %v", host, port, err)
			}
		}
	}
}

// TestGithubWrites shows which writes about pull requests take no token: one of
// them starts a machine at GitHub.
func TestGithubWrites(t *testing.T) {
	d, err := Complete("github", &api.SecretDefinition{Preset: "github", Repositories: []string{"octo/tools"}})
	if err != nil {
		t.Fatal(err)
	}
	reviews := false
	for _, r := range Rules("github", d) {
		if slices.Contains(r.Methods, "GET") {
			continue
		}
		for _, p := range r.Paths {
			reviews = reviews || p == "/repos/octo/tools/pulls/*/reviews/**"
			if strings.Contains(p, "codespaces") || strings.HasSuffix(p, "/pulls/**") || strings.HasSuffix(p, "/pulls/*/**") || strings.HasSuffix(p, "/pulls/*/*") {
				t.Errorf("%v %s", r.Methods, p)
			}
		}
	}
	if !reviews {
		t.Error("control: a pull request cannot be reviewed")
	}
}

func TestForms(t *testing.T) {
	e := edge(t)
	basic := func(user, v string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+v))
	}
	for _, c := range []struct{ secret, method, host, path, header, want string }{
		{"openai", "GET", "api.openai.com", "/v1/models", "Authorization", "Bearer " + value + "openai"},
		{"github", "GET", "github.com", "/octo/tools/info/refs?service=git-upload-pack", "Authorization", basic("x-access-token", value+"github")},
		{"github", "GET", "api.github.com", "/repos/octo/tools", "Authorization", "Bearer " + value + "github"},
		{"npm", "GET", "registry.npmjs.org", "/@a%2fb", "Authorization", "Bearer " + value + "npm"},
		{"pypi", "POST", "upload.pypi.org", "/legacy/", "Authorization", basic("__token__", value+"pypi")},
		{"own", "GET", "api.example.org", "/x", "X-Key", value + "own"},
	} {
		r := request(c.method, "https://"+c.host+c.path, "")
		if err := e.Outgoing(r, c.host, 443, c.secret); err != nil {
			t.Errorf("%s: %v", c.secret, err)
		} else if got := r.Header.Get(c.header); got != c.want {
			t.Errorf("%s: %s: %q", c.secret, c.header, got)
		}
	}
}

// TestBinding is C05 and C10, as far as the edge can see them.
func TestBinding(t *testing.T) {
	e := edge(t)
	for _, c := range []struct {
		what, method, url, host string
		port                    uint16
		secret                  string
	}{
		{"another host", "GET", "https://evil.example/", "evil.example", 443, "own"},
		{"a host below it", "GET", "https://x.api.example.org/", "x.api.example.org", 443, "own"},
		{"another port", "GET", "https://api.example.org:8443/", "api.example.org", 8443, "own"},
		{"clear text", "GET", "http://api.example.org/", "api.example.org", 443, "own"},
		{"another method", "DELETE", "https://api.example.org/", "api.example.org", 443, "own"},
		{"a method of the other host", "DELETE", "https://github.com/octo/tools/info/refs", "github.com", 443, "github"},
		{"a secret that is gone", "GET", "https://api.example.org/", "api.example.org", 443, "gone"},
		{"a user in the URL", "GET", "https://a:b@api.example.org/", "api.example.org", 443, "own"},
	} {
		r := request(c.method, c.url, "")
		err := e.Outgoing(r, c.host, c.port, c.secret)
		if err == nil || strings.Contains(fmt.Sprint(r.Header), value) {
			t.Errorf("%s: %v, headers %v", c.what, err, r.Header)
		}
		if !errors.As(err, new(*Refused)) {
			t.Errorf("%s: %v is not a refusal", c.what, err)
		}
	}
	var none *Edge
	if err := none.Outgoing(request("GET", "https://api.example.org/", ""), "api.example.org", 443, "own"); !errors.As(err, new(*Refused)) {
		t.Errorf("the nil edge: %v", err)
	}
	if err := none.Outgoing(request("GET", "https://api.example.org/", ""), "api.example.org", 443, ""); err != nil {
		t.Errorf("the nil edge without a secret: %v", err)
	}
	if err := e.Outgoing(request("GET", "https://api.example.org/", ""), "api.example.org", 443, "own"); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestQuery(t *testing.T) {
	e := edge(t)
	for _, q := range []string{"key=1", "api_key=1", "api-key=1", "API.KEY=1", "%61pi_key=1", "ap%69%5fkey", "a=1&access_token=x", "token=1", "Sig=1", "signature=1", "X-Amz-Signature=1", "x_amz_credential=1",
		"X-Goog-Signature=1", "auth[token]=1", "oauth_consumer_key=1", "x-api-key=1", "%2561pi_key=1", "a=1;b=2", "a=%zz", "client_secret=", "k%00ey=1", "my_password=1", "session-id=1", "ａpi=1", "AWSAccessKeyId=1", "auth=x", "auth_key=x", "jwt=x", "p%C4%B1n=1"} {
		r := request("GET", "https://api.example.org/", "")
		r.URL.RawQuery = q
		if err := e.Outgoing(r, "api.example.org", 443, "own"); !errors.As(err, new(*Refused)) {
			t.Errorf("?%s: %v", q, err)
		}
	}
	for _, q := range []string{"", "beta=true", "page=2&per_page=100", "page_token=abc", "service=git-upload-pack", "q=a+b%20c", "max_tokens=5", "sort=key", "flag", "ids[]=1&ids[]=2", "after_id=x", "monkey=1"} {
		r := request("GET", "https://api.example.org/", "")
		r.URL.RawQuery = q
		if err := e.Outgoing(r, "api.example.org", 443, "own"); err != nil {
			t.Errorf("control ?%s: %v", q, err)
		}
	}
}

// TestServerFetch is C08: fields by which a server would fetch or send itself.
func TestServerFetch(t *testing.T) {
	e := edge(t)
	deep := strings.Repeat(`[`, 70) + strings.Repeat(`]`, 70)
	for _, c := range []struct{ secret, body string }{
		{"anthropic", `{"mcp_servers":[{"type":"url","url":"https://evil"}]}`},
		{"anthropic", `{"MCP_Servers":[{"url":"https://evil"}]}`},
		{"anthropic", `{"mcp\u005fservers":[{"url":"https://evil"}]}`},
		{"anthropic", `{"mcp_servers":1}`},
		{"anthropic", `{"container":{"skills":[{"skill_id":"x"}]}}`},
		{"anthropic", `{"container":"container_1"}`},
		{"anthropic", `{"tools":[{"type":"custom"},{"type":"web_search_20250305"}]}`},
		{"anthropic", `{"tools":[{"type":"Web_Fetch_20250910"}]}`},
		{"anthropic", `{"tools":[{"type":"code_execution_20250825"}]}`},
		{"anthropic", `{"tools":[{"type":"mcp_toolset"}]}`},
		{"anthropic", `{"tools":[{"type":"something_of_next_year"}]}`},
		{"anthropic", `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"https://evil/?data"}}]}]}`},
		{"anthropic", `{"messages":[{"content":[{"type":"tool_result","content":[{"type":"document","source":{"type":"content","content":[{"source":{"type":"file","file_id":"f"}}]}}]}]}]}`},
		{"anthropic", `{"messages":[{"content":[{"type":"container_upload","file_id":"f"}]}]}`},
		{"anthropic", `{"system":[{"source":{"url":"x","type":"url"}}]}`},
		{"anthropic", `{"a":1,"a":2}`},
		{"anthropic", `{"messages":[{"x":{"b":1,"b":2}}]}`},
		{"anthropic", `{"a":1} {"mcp_servers":[1]}`},
		{"anthropic", `{"a":1,}`},
		{"anthropic", "\xef\xbb\xbf{}"},
		{"anthropic", "{\"a\":\"\xff\"}"},
		{"anthropic", `{"mcp_servers\u0000":[1]}`},
		{"anthropic", `{"a":` + deep + `}`},
		{"openai", `{"tools":[{"type":"web_search"}]}`},
		{"openai", `{"tools":[{"type":"mcp","server_url":"https://evil"}]}`},
		{"openai", `{"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}`},
		{"openai", `{"web_search_options":{"user_location":{}}}`},
		{"openai", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"https://evil/?x"}}]}]}`},
		{"openai", `{"input":[{"content":[{"type":"input_image","image_url":"https://evil/?x"}]}]}`},
		{"openai", `{"input":[{"content":[{"type":"input_file","file_url":"https://evil/?x"}]}]}`},
		{"openai", `{"input":[{"content":[{"type":"input_file","file_id":"f"}]}]}`},
		{"openai", `{"prompt":{"id":"pmpt_1"}}`},
		{"openai", `{"background":true}`},
		{"openai", `{"background":1}`},
		{"openai", `{"model":"gpt-4o-search-preview","messages":[]}`},
		{"openai", `{"model":"gpt-5-search-api"}`},
		{"openai", `{"model":"o3-deep-research-2025-06-26"}`},
		{"openai", `{"input":[{"content":[{"type":"input_image","image_url":{"url":"https://evil/?x"}}]}]}`},
		{"openai", `{"instructions":[{"content":[{"type":"input_image","image_url":"https://evil/?x"}]}]}`},
	} {
		host, path := "api.anthropic.com", "/v1/messages"
		if c.secret == "openai" {
			host, path = "api.openai.com", "/v1/responses"
		}
		r := request("POST", "https://"+host+path, c.body, "Content-Type", "application/json")
		if err := e.Outgoing(r, host, 443, c.secret); !errors.As(err, new(*Refused)) {
			t.Errorf("%s %s: %v", c.secret, c.body, err)
		}
	}
	for _, c := range []struct{ secret, body string }{
		{"anthropic", `{"model":"m","mcp_servers":[],"container":null,"tools":[{"name":"t","input_schema":{"type":"object","properties":{"file_id":{"type":"string"},"source":{"type":"object"}}}},{"type":"bash_20250124"},{"type":"custom"}],"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"aaaa"}},{"type":"text","text":"mcp_servers source.type=url"}]}]}`},
		{"openai", `{"model":"m","tools":[{"type":"function","function":{"parameters":{"properties":{"file_id":{"type":"string"}}}}}],"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,aaaa"}}]}]}`},
		{"openai", `{"input":[{"content":[{"type":"input_image","image_url":"data:image/png;base64,aaaa"}]}],"store":false}`},
		{"openai", `{"model":"ft:gpt-4o:acme-research::1","background":false,"instructions":"Be brief."}`},
	} {
		host := map[string]string{"anthropic": "api.anthropic.com", "openai": "api.openai.com"}[c.secret]
		r := request("POST", "https://"+host+"/", c.body, "Content-Type", "application/json; charset=utf-8", "Content-Length", "1")
		if err := e.Outgoing(r, host, 443, c.secret); err != nil {
			t.Errorf("control %s %s: %v", c.secret, c.body, err)
			continue
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != c.body || r.ContentLength != int64(len(c.body)) || r.Header.Get("Content-Length") != "" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("control %s: what leaves differs: %d bytes, %v, %v", c.secret, len(got), err, r.Header)
		}
	}
}

func TestBodyIsLookedInto(t *testing.T) {
	e := edge(t)
	const body = `{"mcp_servers":[1]}`
	for what, headers := range map[string][]string{
		"packed":        {"Content-Type", "application/json", "Content-Encoding", "gzip"},
		"no type":       {},
		"text":          {"Content-Type", "text/plain"},
		"two types":     {"Content-Type", "application/json", "Content-Type", "text/plain"},
		"UTF-16":        {"Content-Type", "application/json; charset=utf-16"},
		"a broken type": {"Content-Type", "application/json; ="},
	} {
		r := request("POST", "https://api.anthropic.com/v1/messages", `{}`, headers...)
		if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); !errors.As(err, new(*Refused)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A charset that mime does not see, and another reader may.
	r := request("POST", "https://api.anthropic.com/v1/messages", `{}`, "Content-Type", "application/json; charset*=utf-16")
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); err == nil && r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the type that leaves: %q", r.Header.Get("Content-Type"))
	}
	r.Body.Close() // gives its room back
	// A method that has no body as a rule, and a length that is not said.
	r = request("GET", "https://api.anthropic.com/v1/models", body, "Content-Type", "application/json")
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); !errors.As(err, new(*Refused)) {
		t.Errorf("a body with GET: %v", err)
	}
	r = request("POST", "https://api.anthropic.com/v1/messages", body, "Content-Type", "application/json")
	r.ContentLength = -1
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); !errors.As(err, new(*Refused)) {
		t.Errorf("a body without a length: %v", err)
	}
	// Too much, said and unsaid; the room is given back.
	for _, said := range []int64{maxBody + 1, -1} {
		for range maxBodies/maxBody + 1 {
			r = request("POST", "https://api.anthropic.com/v1/messages", "x", "Content-Type", "application/json")
			r.Body = io.NopCloser(io.LimitReader(zeros{}, maxBody+1))
			r.ContentLength = said
			if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); !errors.As(err, new(*Refused)) {
				t.Fatalf("%d bytes: %v", said, err)
			}
			if said > 0 {
				break
			}
		}
	}
	// The memory for bodies is bounded: who comes late waits, and gives up with its request.
	var open []io.Closer
	for range maxBodies / maxBody {
		r := request("POST", "https://api.anthropic.com/v1/messages", `{}`, "Content-Type", "application/json")
		r.ContentLength = -1
		if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); err != nil {
			t.Fatal(err)
		}
		open = append(open, r.Body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = request("POST", "https://api.anthropic.com/v1/messages", `{}`, "Content-Type", "application/json").WithContext(ctx)
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); !errors.Is(err, context.Canceled) {
		t.Errorf("one body too many: %v", err)
	}
	for _, c := range open {
		c.Close()
		c.Close()
	}
	r = request("POST", "https://api.anthropic.com/v1/messages", `{}`, "Content-Type", "application/json")
	if err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic"); err != nil {
		t.Errorf("after they were closed: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestBetas(t *testing.T) {
	e := edge(t)
	send := func(beta ...string) (string, error) {
		r := request("GET", "https://api.anthropic.com/v1/models", "")
		r.Header["Anthropic-Beta"] = beta
		err := e.Outgoing(r, "api.anthropic.com", 443, "anthropic")
		return r.Header.Get("Anthropic-Beta"), err
	}
	for _, b := range []string{"files-api-2025-04-14", "Files-API-2025", "claude-code-20250219, mcp-client-2025-11-20", "code-execution-2025-08-25", "skills-2025-10-02", "web-fetch-2025-09-10", "managed-agents-2026"} {
		if _, err := send(b); !errors.As(err, new(*Refused)) {
			t.Errorf("%s: %v", b, err)
		}
	}
	got, err := send("claude-code-20250219,unheard-of-2027 , interleaved-thinking-2025-05-14", "context-1m-2025-08-07")
	if err != nil || got != "claude-code-20250219,interleaved-thinking-2025-05-14,context-1m-2025-08-07" {
		t.Errorf("control: %q, %v", got, err)
	}
}

// TestPlaceholders is C07: a placeholder that goes anywhere but where the
// credential would be is refused, and never turned into it.
func TestPlaceholders(t *testing.T) {
	e := edge(t)
	p := e.secrets["openai"].d.Placeholder
	for what, change := range map[string]func(*http.Request){
		"bearer":          func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+p) },
		"any header":      func(r *http.Request) { r.Header.Set("X-Whatever", "a "+p+" b") },
		"an odd header":   func(r *http.Request) { r.Header["x_api_key"] = []string{p} },
		"a header's name": func(r *http.Request) { r.Header[p] = []string{"x"} },
		"basic, password": func(r *http.Request) { r.SetBasicAuth("user", p) },
		"basic, user":     func(r *http.Request) { r.SetBasicAuth(p, "x") },
		"basic, URL form": func(r *http.Request) {
			r.Header.Set("Authorization", "basic "+base64.RawURLEncoding.EncodeToString([]byte("u:"+p)))
		},
		"base64, anywhere": func(r *http.Request) {
			r.Header.Set("X-A", base64.StdEncoding.EncodeToString([]byte("some text "+p+" more")))
		},
		"hex":             func(r *http.Request) { r.Header.Set("X-A", hex.EncodeToString([]byte(p))) },
		"cookie, escaped": func(r *http.Request) { r.Header.Set("Cookie", "a="+allEscaped(p)) },
		"path":            func(r *http.Request) { r.URL.Path = "/x/" + p },
		"query":           func(r *http.Request) { r.URL.RawQuery = "q=" + p },
		"query, escaped":  func(r *http.Request) { r.URL.RawQuery = "q=" + url.QueryEscape(allEscaped(p)) },
		"query, and junk": func(r *http.Request) { r.URL.RawQuery = "q=%zz" + strings.ReplaceAll(p, "-", "%2d") },
		"user of the URL": func(r *http.Request) { r.URL.User = url.User(p) },
		"a trailer":       func(r *http.Request) { r.Trailer = http.Header{"X-T": {p}} },
	} {
		r := request("POST", "https://evil.example/", "")
		if err := e.Outgoing(r, "evil.example", 443, ""); err != nil {
			t.Fatalf("%s: control: %v", what, err)
		}
		change(r)
		err := e.Outgoing(r, "evil.example", 443, "")
		if got := reason(err); !strings.Contains(got, "openai") || strings.Contains(got, value) {
			t.Errorf("%s: %s", what, got)
		}
	}
	// To its own host it is taken out where a credential would be, and refused
	// where it would be seen.
	r := request("GET", "https://api.openai.com/v1/models", "", "Authorization", "Bearer "+p)
	if err := e.Outgoing(r, "api.openai.com", 443, "openai"); err != nil || strings.Contains(fmt.Sprint(r.Header), p) {
		t.Errorf("control: its own place: %v, %v", err, r.Header)
	}
	r = request("GET", "https://api.openai.com/v1/models/"+p, "")
	if err := e.Outgoing(r, "api.openai.com", 443, "openai"); !errors.As(err, new(*Refused)) {
		t.Errorf("in its own host's URL: %v", err)
	}
}

func TestPlaceholderInBody(t *testing.T) {
	e := edge(t)
	p := e.secrets["openai"].d.Placeholder
	for what, text := range map[string]string{
		"plain":    "x" + p + "y",
		"twice":    "sk-carrel-sk-" + p[3:],
		"base64":   base64.StdEncoding.EncodeToString([]byte("env\n" + p + "\n")),
		"base64 1": base64.StdEncoding.EncodeToString([]byte("1" + p + "\n")),
		"base64 2": base64.StdEncoding.EncodeToString([]byte("12" + p + "\n")),
		"hex":      hex.EncodeToString([]byte(p)),
		"escaped":  allEscaped(p),
		"in JSON":  `{"a":"` + p + `"}`,
	} {
		want := true
		if what == "twice" {
			text = strings.Repeat("sk-carrel-placeholder-", 3) + p
		}
		for _, slow := range []bool{false, true} {
			var src io.Reader = strings.NewReader(strings.Repeat("z", 5000) + text + "tail")
			if slow {
				src = iotest.OneByteReader(src)
			}
			got, err := io.ReadAll(e.Body(io.NopCloser(src), "evil.example"))
			if refused := errors.As(err, new(*Refused)); refused != want {
				t.Errorf("%s, slow %v: %v", what, slow, err)
			}
			if strings.Contains(string(got), text) {
				t.Errorf("%s: it went through", what)
			}
			// Once refused, always refused.
		}
	}
	body := strings.Repeat("sk-carrel-placeholder", 100) + "-opena" // almost
	if got, err := io.ReadAll(e.Body(io.NopCloser(strings.NewReader(body)), "evil.example")); err != nil || string(got) != body {
		t.Errorf("control: %v", err)
	}
	if got, err := io.ReadAll(e.Body(io.NopCloser(strings.NewReader(p)), "api.openai.com")); err != nil || string(got) != p {
		t.Errorf("control: its own host: %v", err)
	}
	if _, err := io.ReadAll(e.Body(io.NopCloser(strings.NewReader(p)), "api.anthropic.com")); !errors.As(err, new(*Refused)) {
		t.Errorf("another secret's host: %v", err)
	}
	if b := e.Body(http.NoBody, "x"); b != http.NoBody {
		t.Error("no body became one")
	}
}

// TestEcho is C06: a server that repeats what it was sent.
func TestEcho(t *testing.T) {
	e := edge(t)
	v := value + "own"
	for what, form := range map[string]string{"plain": v, "base64": base64.StdEncoding.EncodeToString([]byte("a" + v + "b")), "query": url.QueryEscape(v), "hex": hex.EncodeToString([]byte(v))} {
		for _, packed := range []bool{false, true} {
			for _, slow := range []bool{false, true} {
				text := "data: begin\n" + strings.Repeat(v[:7], 9) + form + form + " end " + v[:9]
				raw := []byte(text)
				res := &http.Response{StatusCode: 200, Header: http.Header{"Location": {"/?q=" + form}, "X-Plain": {"v"}}, Trailer: http.Header{"X-T": {form}}, ContentLength: int64(len(raw))}
				if packed {
					var b bytes.Buffer
					z := gzip.NewWriter(&b)
					z.Write(raw)
					z.Close()
					raw = b.Bytes()
					res.Header.Set("Content-Encoding", "gzip")
				}
				var src io.Reader = bytes.NewReader(raw)
				if slow {
					src = iotest.OneByteReader(src)
				}
				res.Body = io.NopCloser(src)
				if err := e.Incoming(res); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				if err != nil || len(got) != len(text) || !strings.HasPrefix(string(got), "data: begin\n"+strings.Repeat(v[:7], 9)) || !strings.HasSuffix(string(got), " end "+v[:9]) {
					t.Errorf("%s: %d of %d bytes, %v: %q", what, len(got), len(text), err, got)
				}
				for where, s := range map[string]string{"body": string(got), "header": res.Header.Get("Location"), "trailer": res.Trailer.Get("X-T")} {
					if holds(s, v) || strings.Contains(s, form) {
						t.Errorf("%s, packed %v, slow %v: the value is in the %s: %q", what, packed, slow, where, s)
					}
				}
				if res.Header.Get("X-Plain") != "v" || packed && res.ContentLength != -1 {
					t.Errorf("%s: other headers: %v", what, res.Header)
				}
			}
		}
	}
	res := &http.Response{StatusCode: 200, Header: http.Header{"Content-Encoding": {"br"}}, ContentLength: 9, Body: io.NopCloser(strings.NewReader("xxxxxxxxx"))}
	if err := e.Incoming(res); err == nil {
		t.Error("an answer that cannot be read was let in")
	}
}

// TestEchoStreams shows that a line is not held back.
func TestEchoStreams(t *testing.T) {
	e := edge(t)
	pr, pw := io.Pipe()
	defer pw.Close()
	res := &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: pr}
	if err := e.Incoming(res); err != nil {
		t.Fatal(err)
	}
	go pw.Write([]byte("data: x\n\n"))
	got := make([]byte, 9)
	if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != "data: x\n\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// holds says whether a text gives a value away.
func holds(s, v string) bool {
	for _, f := range []string{v, url.QueryEscape(v), url.PathEscape(v), hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))} {
		if strings.Contains(s, f) {
			return true
		}
	}
	return false
}
