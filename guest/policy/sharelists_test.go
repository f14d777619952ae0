package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	sharerules "github.com/carrel-vm/carrel/guest/share/rules"
)

func parsed(t *testing.T, parse func([]byte, string) (*File, []*api.PolicyProblem), content, name string) *File {
	t.Helper()
	f, problems := parse([]byte(content), name)
	if f == nil {
		t.Fatal(Problems(name, problems))
	}
	return f
}

// Of several lists the last one counts, each pattern says where it stands, and
// what the repository adds comes last, so that it can only add.
func TestShareRules(t *testing.T) {
	w := newWorld(t)
	file := parsed(t, ParseFile, "version: 1\nshares:\n  hide: [notes, \"!.env.test\"]\n  protect:\n    - /deploy\n", "policy.yaml")
	asked := parsed(t, ParseRequest, "version: 1\nshares:\n  hide: [.env.test]\n", RequestName)
	decide := func(rules Rules, sh *api.Share) *sharerules.Set {
		t.Helper()
		sh.Path = w.project
		g, err := Decide(&api.GuestSpec{Name: "g", Shares: []*api.Share{sh}}, rules)
		if err != nil {
			t.Fatal(err)
		}
		set, err := sharerules.Compile(g.ShareRules(0))
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	alone := decide(w.rules(), &api.Share{})
	users := decide(file.Apply(w.rules()), &api.Share{Hide: []string{"*.log", "!notes"}, Protect: []string{"ci"}})
	both := file.Apply(w.rules())
	both.Asked = map[string]Lists{w.project: asked.Shares}
	narrowed := decide(both, &api.Share{Hide: []string{"!.env.test"}})
	elsewhere := file.Apply(w.rules())
	elsewhere.Asked = map[string]Lists{w.home: asked.Shares}
	for _, c := range []struct {
		set             *sharerules.Set
		path            string
		hidden, protect bool
		origin          string
	}{
		{alone, ".env", true, false, sharerules.BuiltIn},
		{alone, "notes", false, false, ""},
		{alone, "sub/.git/hooks/x", false, true, sharerules.BuiltIn},
		{users, "notes", false, false, ""},
		{users, "a/x.log", true, false, "--hide"},
		{users, ".env.test", false, false, ""},
		{users, "deploy/x", false, true, "policy.yaml:5"},
		{users, "a/ci/x", false, true, "--protect"},
		{narrowed, ".env.test", true, false, ".carrel.yaml:3"},
		{decide(elsewhere, &api.Share{}), ".env.test", false, false, ""},
		{decide(file.Apply(w.rules()), &api.Share{Plain: true}), ".env", false, false, ""},
	} {
		v := c.set.Judge(c.path)
		if v.Hidden != c.hidden || v.Protected != c.protect || v.Origin != c.origin {
			t.Errorf("%s: %+v, want %+v", c.path, v, c)
		}
	}
	if got := narrowed.Mode(); got != sharerules.Review {
		t.Errorf("mode %v", got)
	}
	if got := decide(w.rules(), &api.Share{Mode: api.ShareMode_SHARE_MODE_RW_NODELETE}).Mode(); got != sharerules.NoDelete {
		t.Errorf("mode %v", got)
	}
}

// A pattern that is not understood refuses the share: the control is the same
// share without it.
func TestBadPatterns(t *testing.T) {
	w := newWorld(t)
	many := make([]string, maxFileNames+1)
	for i := range many {
		many[i] = "x"
	}
	for why, sh := range map[string]*api.Share{
		"backslash": {Hide: []string{`a\b`}}, "empty": {Protect: []string{""}}, "dots": {Hide: []string{"../x"}}, "all": {Hide: []string{"**"}},
		"control": {Protect: []string{"a\nb"}}, "bracket": {Hide: []string{"a["}}, "many": {Hide: many}, "plain with names": {Plain: true, Hide: []string{"x"}},
	} {
		sh.Path = w.project
		_, err := decide(w, sh)
		var r *Refusal
		if err == nil || !asRefusal(err, &r) {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := decide(w, &api.Share{Path: w.project, Hide: []string{"a/b", "!c", "*.d"}}); err != nil {
		t.Error(err)
	}
	rules := w.rules()
	rules.Asked = map[string]Lists{w.project: {Hide: []sharerules.List{{Pattern: "!.env", Origin: "x"}}}}
	if _, err := Decide(&api.GuestSpec{Name: "g", Shares: []*api.Share{{Path: w.project}}}, rules); err == nil {
		t.Error("a repository took back what is hidden")
	}
}

func asRefusal(err error, r **Refusal) bool {
	x, is := err.(*Refusal)
	*r = x
	return is
}

// Mistakes in a file's lists have their lines.
func TestShareListProblems(t *testing.T) {
	for _, c := range []struct {
		parse      func([]byte, string) (*File, []*api.PolicyProblem)
		text, want string
	}{
		{ParseFile, "version: 1\nshares:\n  hide:\n    - a\n    - b\\c\n", "policy.yaml:5:7: shares.hide: the pattern \"b\\\\c\" has a backslash"},
		{ParseFile, "version: 1\nshares:\n  hidden: [a]\n", "policy.yaml:3:3: unknown key \"hidden\" in shares"},
		{ParseFile, "version: 1\nshares:\n  protect: [\"\"]\n", "is empty"},
		{ParseFile, "version: 1\nshares:\n  protect: 7\n", "shares.protect is a list, not the number 7"},
		{ParseRequest, "version: 1\nshares:\n  hide: [\"!.env\"]\n", "takes something back, which a repository cannot"},
	} {
		f, problems := c.parse([]byte(c.text), "policy.yaml")
		if got := Problems("policy.yaml", problems); f != nil || !strings.Contains(got, c.want) {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

// A keeper decides on what came to it through JSON.
func TestListsSurviveJSON(t *testing.T) {
	w := newWorld(t)
	rules := parsed(t, ParseFile, "version: 1\nshares: {hide: [a], protect: [b]}\n", "policy.yaml").Apply(w.rules())
	rules.Asked = map[string]Lists{w.project: {Hide: []sharerules.List{{Pattern: "c", Origin: ".carrel.yaml:1"}}}}
	b, err := json.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	var again Rules
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	spec := &api.GuestSpec{Name: "g", Shares: []*api.Share{{Path: w.project}}}
	one, err := Decide(spec, rules)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Decide(spec, again)
	if err != nil {
		t.Fatal(err)
	}
	if x, y := mustJSON(t, one.ShareRules(0)), mustJSON(t, two.ShareRules(0)); x != y || !strings.Contains(x, ".carrel.yaml:1") {
		t.Errorf("%s\n%s", x, y)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What is in review has a disk, unless the wall has none, and every share has a
// layer of its own in the store.
func TestReviewDisk(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		boundary string
		mode     api.ShareMode
		disk     uint32
	}{
		{"", api.ShareMode_SHARE_MODE_UNSPECIFIED, DefaultDiskMiB}, {"process", api.ShareMode_SHARE_MODE_REVIEW, DefaultDiskMiB},
		{"gvisor", api.ShareMode_SHARE_MODE_REVIEW, 0}, {"", api.ShareMode_SHARE_MODE_RW, 0},
	} {
		g, err := Decide(&api.GuestSpec{Name: "g", Ephemeral: true, Boundary: c.boundary, Shares: []*api.Share{{Path: w.project, Mode: c.mode}}}, w.rules())
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Spec().DiskMib; got != c.disk {
			t.Errorf("%+v: %d MiB", c, got)
		}
		sh := g.Config(Parts{}).Shares[0]
		if g.Layer(0) == "" || sh.Overlay != (sh.Layer != "") {
			t.Errorf("%+v: layer %q, %+v", c, g.Layer(0), sh)
		}
	}
}

// A root within the lists is not shared under them, since they would be blind
// there; the same folder is, where somebody says that it is meant.
func TestRootWithinLists(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{".git", ".git/modules/sub", ".vscode", ".aws", "deep/.ssh/keys", ".GIT", ".cargo"} {
		dir := filepath.Join(w.project, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := decide(w, &api.Share{Path: dir, Mode: api.ShareMode_SHARE_MODE_RW})
		var r *Refusal
		if !errors.As(err, &r) || r.Code != "share_refused" || r.Cure == "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := decide(w, &api.Share{Path: dir, Mode: api.ShareMode_SHARE_MODE_RO, Plain: true}); err != nil {
			t.Errorf("plain %s: %v", name, err)
		}
	}
	// What is read only changes nothing that is protected.
	if _, err := decide(w, &api.Share{Path: filepath.Join(w.project, ".git"), Mode: api.ShareMode_SHARE_MODE_RO}); err != nil {
		t.Errorf(".git:ro: %v", err)
	}
	for _, name := range []string{"src", ".claude/worktrees/x", ".github", "node_modules"} { // control
		dir := filepath.Join(w.project, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := decide(w, &api.Share{Path: dir}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Guests that stay have a disk, but behind gVisor, where there is none to have.
func TestDisks(t *testing.T) {
	w := newWorld(t)
	for boundary, want := range map[string]uint32{"": DefaultDiskMiB, "vm": DefaultDiskMiB, "process": DefaultDiskMiB, "gvisor": 0} {
		g, err := Decide(&api.GuestSpec{Name: "g", Boundary: boundary}, w.rules())
		if err != nil || g.Spec().DiskMib != want {
			t.Errorf("%q: %v, %v", boundary, g.Spec().GetDiskMib(), err)
		}
	}
}
