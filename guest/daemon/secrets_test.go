package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
	"github.com/carrel-vm/carrel/guest/secret"
)

// TestPresetRules holds the rules that ready-made definitions bring against the
// policy that carries them out: what each credential can be used for.
func TestPresetRules(t *testing.T) {
	const allow, deny = api.EgressAction_EGRESS_ACTION_ALLOW, api.EgressAction_EGRESS_ACTION_DENY
	for _, c := range []struct {
		preset, host, method, path string
		want                       api.EgressAction
	}{
		{"anthropic", "api.anthropic.com", "POST", "/v1/messages", allow},
		{"anthropic", "api.anthropic.com", "POST", "/v1/messages/count_tokens", allow},
		{"anthropic", "api.anthropic.com", "GET", "/v1/models/claude-x", allow},
		{"anthropic", "api.anthropic.com", "POST", "/v1/files", deny}, // the Files API attack
		{"anthropic", "api.anthropic.com", "POST", "/v1/messages/batches", deny},
		{"anthropic", "api.anthropic.com", "POST", "/v1/messages/../files", deny},
		{"anthropic", "api.anthropic.com", "POST", "/v1//files", deny},
		{"anthropic", "api.anthropic.com", "GET", "/v1/messages", deny},
		{"anthropic", "evil.example", "POST", "/v1/messages", deny},
		{"openai", "api.openai.com", "POST", "/v1/responses", allow},
		{"openai", "api.openai.com", "POST", "/v1/chat/completions", allow},
		{"openai", "api.openai.com", "POST", "/v1/files", deny},
		{"openai", "api.openai.com", "POST", "/v1/models/x", deny},
		{"openai", "api.openai.com", "GET", "/v1/responses/resp_1", deny},
		{"github", "github.com", "GET", "/octo/tools.git/info/refs", allow},
		{"github", "github.com", "POST", "/octo/tools.git/git-receive-pack", allow},
		{"github", "github.com", "POST", "/octo/tools/git-upload-pack", allow},
		{"github", "github.com", "GET", "/octo/other/info/refs", deny},
		{"github", "github.com", "GET", "/octo/toolsX/info/refs", deny},
		{"github", "github.com", "POST", "/octo/tools/settings", deny},
		{"github", "api.github.com", "GET", "/repos/octo/tools/hooks", allow},
		{"github", "api.github.com", "POST", "/repos/octo/tools/issues", allow},
		{"github", "api.github.com", "PATCH", "/repos/octo/tools/issues/1", allow},
		{"github", "api.github.com", "POST", "/repos/octo/tools/hooks", deny},
		{"github", "api.github.com", "POST", "/repos/octo/tools/issues/../hooks", deny},
		{"github", "api.github.com", "PUT", "/repos/octo/tools/collaborators/evil", deny},
		{"github", "api.github.com", "POST", "/repos/octo/tools/forks", deny},
		{"github", "api.github.com", "DELETE", "/repos/octo/tools", deny},
		{"github", "api.github.com", "POST", "/user/repos", deny},
		{"github", "api.github.com", "POST", "/gists", deny},
		{"github", "api.github.com", "GET", "/repos/octo/other", deny},
		{"npm", "registry.npmjs.org", "GET", "/left-pad", allow},
		{"npm", "registry.npmjs.org", "GET", "/@scope%2fname", allow},
		{"npm", "registry.npmjs.org", "GET", "/@scope/name/-/name-1.0.0.tgz", allow},
		{"npm", "registry.npmjs.org", "GET", "/left-pad/-/left-pad-1.0.0.tgz", allow},
		{"npm", "registry.npmjs.org", "PUT", "/left-pad", deny},
		{"npm", "registry.npmjs.org", "GET", "/-/npm/v1/tokens", deny},
		{"npm", "registry.npmjs.org", "GET", "/-/whoami", deny},
		{"pypi", "upload.pypi.org", "POST", "/legacy/", allow},
		{"pypi", "upload.pypi.org", "POST", "/other/", deny},
		{"pypi", "pypi.org", "GET", "/simple/", deny},
	} {
		d := &api.SecretDefinition{Preset: c.preset}
		if c.preset == "github" {
			d.Repositories = []string{"octo/tools"}
		}
		d, err := secret.Complete("s", d)
		if err != nil {
			t.Fatal(err)
		}
		e, err := policy.NewEgress(secret.Rules("s", d))
		if err != nil {
			t.Fatal(err)
		}
		h, err := policy.ParseHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		to := policy.Destination{Host: h, Port: 443}
		got := e.Connect(to).Action
		if got == allow {
			v := e.Request(to, policy.Request{Method: c.method, Path: c.path})
			if got = v.Action; got == allow && v.Rule.Secret != "s" {
				t.Errorf("%s %s %s%s: allowed without the secret", c.preset, c.method, c.host, c.path)
			}
		}
		if got != c.want {
			t.Errorf("%s %s %s%s: %v, want %v", c.preset, c.method, c.host, c.path, got, c.want)
		}
		to.Port = 80
		if v := e.Connect(to); v.Action == allow {
			t.Errorf("%s: clear text to %s is allowed", c.preset, c.host)
		}
	}
}

func TestSecretError(t *testing.T) {
	err := secretError("secret_refused", "x", fmt.Errorf("keep secret x: %w", errors.New("it is too long (shorten it)")))
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeInvalidArgument || ce.Message() != "it is too long" {
		t.Errorf("%v", err)
	}
	err = secretError("secret_refused", "x", fmt.Errorf("secret x: %w", secret.ErrNotFound))
	if connect.CodeOf(err) != connect.CodeNotFound || !strings.Contains(err.Error(), "no such secret") {
		t.Errorf("%v", err)
	}
}
