package secret

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// Presets names the ready-made definitions, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// prefixes begin the placeholders of credentials whose tools look at the form.
var prefixes = map[string]string{"anthropic": "sk-ant-", "openai": "sk-", "github": "ghp_", "npm": "npm_", "pypi": "pypi-"}

// presets are the ready-made definitions. Each says in Residuals what a hostile
// guest can still do with it.
var presets = map[string]*api.SecretDefinition{
	// https://docs.anthropic.com/en/api: messages, count_tokens, models. Files,
	// batches, skills and the administration stay out of reach.
	"anthropic": {
		Hosts:   []string{"api.anthropic.com"},
		Kind:    api.SecretKind_SECRET_KIND_HEADER,
		Header:  "x-api-key",
		Methods: []string{"GET", "POST"},
		Paths:   []string{"/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/*"},
		Env:     "ANTHROPIC_API_KEY",
		PassHeaders: []string{
			"anthropic-version",
			// A beta is what gives a request the features of files, fetching and
			// remote tools. Those that only change how the model answers pass,
			// those known to reach out are refused, the rest is taken out.
			"anthropic-beta=claude-code-*|interleaved-thinking-*|fine-grained-tool-streaming-*|context-1m-*|context-management-*|prompt-caching-*|extended-cache-ttl-*|structured-outputs-*|effort-*|token-efficient-tools-*|output-128k-*|max-tokens-*|token-counting-*|computer-use-*|adaptive-thinking-*|dev-full-thinking-*|redact-thinking-*|model-context-window-exceeded-*|compact-*|advanced-tool-use-*|tool-search-tool-*|fast-mode-*",
			"anthropic-beta!=files-api*|mcp-*|code-execution*|web-fetch*|skills*|*agents*|*batch*",
		},
		RefuseFields: []string{
			"mcp_servers", "container",
			// Tools that run at Anthropic (web_search_*, web_fetch_*,
			// code_execution_*, mcp_toolset) fetch and send; these run here.
			"tools.*.type!=custom|bash_*|text_editor_*|computer_*|memory_*|tool_search_tool_*",
			"messages.**.source.type=url|file|s3*|gcs*", "system.**.source.type=url|file|s3*|gcs*",
			"messages.**.file_id", "system.**.file_id",
		},
		Residuals: []string{
			"A guest can spend the account's money on messages, and can read the answers.",
			"What it sends in a message is kept by Anthropic under the account of the credential, not under another.",
			"A custom tool whose arguments hold a field source.type=url or file_id, as model output sent back, is refused as well.",
		},
	},
	// https://platform.openai.com/docs/api-reference
	"openai": {
		Hosts:       []string{"api.openai.com"},
		Kind:        api.SecretKind_SECRET_KIND_BEARER,
		Methods:     []string{"GET", "POST"},
		Paths:       []string{"/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/models/*"},
		Env:         "OPENAI_API_KEY",
		PassHeaders: []string{"openai-beta=responses=*"},
		RefuseFields: []string{
			// web_search, file_search, code_interpreter, mcp, hosted shells and
			// image generation run at OpenAI; these run here.
			"tools.*.type!=function|custom|local_shell|apply_patch",
			"web_search_options", "prompt", "conversation", "background!=false",
			// gpt-4o-search-preview and its like search the web without being told to.
			"model=*-search|*-search-*|*deep-research*",
			"messages.**.image_url.url!=data:*", "messages.**.image_url!=data:*", "input.**.image_url!=data:*", "input.**.image_url.url!=data:*",
			"instructions.**.image_url!=data:*", "instructions.**.file_id", "instructions.**.file_url",
			"messages.**.file_id", "input.**.file_id", "messages.**.file_url", "input.**.file_url",
			"input.**.tools.*.type!=function|custom|local_shell|apply_patch",
			"**.server_url", "**.connector_id", "**.vector_store_ids",
		},
		Residuals: []string{
			"A guest can spend the account's money on completions, and can read the answers.",
			"An answer that is stored (store: true) is kept under the account of the credential; previous_response_id can name any stored answer of that account.",
			"Realtime (WebSocket), files, batches, assistants and fine-tuning are not reachable.",
		},
	},
	// https://docs.github.com/rest. The rules are made from the repositories:
	// see githubGrants.
	"github": {
		Hosts: []string{"api.github.com", "github.com"},
		Kind:  api.SecretKind_SECRET_KIND_BASIC,
		User:  "x-access-token",
		Env:   "GITHUB_TOKEN",
		PassHeaders: []string{
			"git-protocol", "x-github-api-version",
		},
		Residuals: []string{
			"A guest can push to the named repositories, their workflows included where the token may: what CI does with a push is outside the guest. Protect branches, and leave the workflow scope out of the token.",
			"It can read all that the REST API says about the named repositories, and write issues, pull requests, comments, contents, statuses and checks; an issue or a pull request of a public repository can be read by anybody.",
			"A merge is a write to pulls. Hooks, keys, collaborators, secrets, forks, transfers and settings cannot be written.",
			"GraphQL (most of the gh tool), Git LFS and release uploads are not reachable with the token.",
			"Who acts on what is written in the repository (a bot that answers comments, an agent that issues are assigned to) acts on a guest's words.",
		},
	},
	// https://github.com/npm/registry/blob/main/docs/REGISTRY-API.md: reading
	// packages, private ones included. Nothing below /-/ (tokens, users, audit),
	// no publishing.
	"npm": {
		Hosts:   []string{"registry.npmjs.org"},
		Kind:    api.SecretKind_SECRET_KIND_BEARER,
		Methods: []string{"GET", "HEAD"},
		Paths:   []string{"/*", "/@*/*", "/*/-/*", "/@*/*/-/*"},
		Env:     "NPM_TOKEN",
		Residuals: []string{
			"A guest can read every package that the token can read: use a read-only token of limited scope.",
			"The names that a guest asks for are seen by the registry.",
		},
	},
	// https://docs.pypi.org/api/upload/: the token is for uploads; reading PyPI
	// takes none (preset packages of the policy).
	"pypi": {
		Hosts:   []string{"upload.pypi.org"},
		Kind:    api.SecretKind_SECRET_KIND_BASIC,
		User:    "__token__",
		Methods: []string{"POST"},
		Paths:   []string{"/legacy/"},
		Env:     "TWINE_PASSWORD",
		Residuals: []string{
			"A guest can publish any new version of every project that the token covers: use a token of one project, and give it only to a guest that shall publish.",
			"Reading packages needs no token; this definition allows uploads only.",
		},
	},
}

func unknownPreset(name string) error {
	return fmt.Errorf("there is no definition %.40q (there are %s)", name, strings.Join(Presets(), ", "))
}

// fill puts a preset's values where the definition has none. Where a credential
// goes, and how it is sent, is the preset's to say: a preset that goes elsewhere
// is a definition of one's own.
func fill(d *api.SecretDefinition) error {
	p := presets[d.Preset]
	if p == nil {
		return unknownPreset(d.Preset)
	}
	// A stored definition comes back whole; anything else may not differ.
	same := func(mine, its []string) bool { return len(mine) == 0 || slices.Equal(mine, its) }
	if !same(d.Hosts, p.Hosts) || d.Kind != 0 && d.Kind != p.Kind || d.Header != "" && !strings.EqualFold(d.Header, p.Header) || d.User != "" && d.User != p.User ||
		len(d.Ports) > 0 && !slices.Equal(d.Ports, []uint32{443}) {
		return errors.New("the definition " + d.Preset + " has its own host, port and kind of credential (leave them out, or leave --for out)")
	}
	if d.Preset == "github" && (len(d.Methods) > 0 || len(d.Paths) > 0) {
		return errors.New("the definition github is bound to repositories, not to methods and paths (--repository OWNER/NAME)")
	}
	p = proto.Clone(p).(*api.SecretDefinition)
	d.Hosts, d.Kind, d.Header, d.User, d.Ports = p.Hosts, p.Kind, p.Header, p.User, p.Ports
	if len(d.Methods) == 0 {
		d.Methods = p.Methods
	}
	if len(d.Paths) == 0 {
		d.Paths = p.Paths
	}
	if d.Env == "" {
		d.Env = p.Env
	}
	// Its refusals hold whatever else is asked for.
	if !slices.Equal(d.PassHeaders, p.PassHeaders) {
		d.PassHeaders = union(p.PassHeaders, d.PassHeaders)
	}
	d.RefuseFields = union(p.RefuseFields, d.RefuseFields)
	d.Residuals = p.Residuals
	return nil
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
