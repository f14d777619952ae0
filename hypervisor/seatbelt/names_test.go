package seatbelt

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor"
)

const shared = "/Users/u/src/app"

// ruled is the profile of a guest with one share that has rules.
func ruled(t testing.TB, readOnly bool, o rules.Options) ([]expr, string) {
	t.Helper()
	h := host()
	hide, protect := o.Patterns()
	h.Names = []Names{{Hide: hide, Protect: protect}}
	profile, err := Profile(config(hypervisor.Share{Path: shared, GuestPath: shared, ReadOnly: readOnly}), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := Lint(profile); err != nil {
		t.Fatal(err)
	}
	forms, err := parse(profile)
	if err != nil {
		t.Fatal(err)
	}
	return forms, profile
}

func own(patterns ...string) (l []rules.List) {
	for _, p := range patterns {
		l = append(l, rules.List{Pattern: p, Origin: "--hide"})
	}
	return l
}

func TestNames(t *testing.T) {
	o := rules.Options{
		Mode: rules.ReadWrite, Hide: own("/notes", "secrets/**/key", "!id_dsa", "!a/b.pem", "draft?", "x[0-9]"), Protect: own("!.envrc", "dist/out", "sp ec+i(al)"),
	}
	forms, _ := ruled(t, false, o)
	readOnly, _ := ruled(t, true, o)
	const ( // what a guest may do
		r = 1 << iota
		w
		remove
		make
	)
	for path, want := range map[string]int{
		"main.go": r | w | remove | make, "a/b/c": r | w | remove | make, ".github/workflows/x": r | w | remove | make,
		".env": 0, ".env/x": 0, "a/.env.local": 0, ".ENV": 0, ".en\u200dv": 0, "\u200d.env": 0, ".env.": 0, "environment": r | w | remove | make,
		".env.example": r | w | remove | make, "a/.env.example": r | w | remove | make, ".env.example/x": 0, ".ssh/.env.example": 0,
		"id_rsa": 0, "id_r\u017fa": 0, "id_dsa": r | w | remove | make, ".\u212aube/config": 0, ".kube/other": r | w | remove | make, ".kube": r | w,
		"server.pem": 0, "cacert.pem": r | w | remove | make, "a/b.pem": 0, "node_modules/x/test.pem": 0, // what two parts take back is not
		"notes": 0, "notes/x": 0, "a/notes": r | w | remove | make,
		"secrets/key": 0, "secrets/a/b/key": 0, "secrets/a/b": r, "secrets": r | w, "draft1": 0, "drafts/x": 0, "draft": r | w | remove | make, "x7": 0, "xy": 0,
		".git/hooks": r, ".git/hooks/post-commit": r, ".GIT/Hoo\u212as/x": r, ".git/con\ufb01g": r, ".git/index": r | w | remove | make, ".git": r | w,
		"sub/.git": r | w, ".git/modules/x/objects": r, ".git/refs": r | w | remove | make, ".g\u200cit/hooks/x": r,
		".vscode": r, ".v\u017fcode/x": r, "node_modules/x/.vscode/y": r, ".envrc": r | w | remove | make,
		"dist/out": r, "dist/out/x": r, "dist": r | w, "dist/in": r | w | remove | make, "sp ec+i(al)": r, "sp ecci(al)": r | w | remove | make,
	} {
		for bit, op := range map[int]string{r: "file-read-data", w: "file-write-data", remove: "file-write-unlink", make: "file-write-create"} {
			if got := decide(forms, op, shared+"/"+path); got != (want&bit != 0) {
				t.Errorf("%q: %s is allowed: %t", path, op, got)
			}
			if got := decide(readOnly, op, shared+"/"+path); got != (want&bit&r != 0) {
				t.Errorf("read-only, %q: %s is allowed: %t", path, op, got)
			}
		}
	}
}

// TestNamesAreNoWider: whatever the share server would hide or protect, the
// profile denies; and it does not deny everything.
func TestNamesAreNoWider(t *testing.T) {
	words := []string{
		".env", ".env.example", ".env.local", "key", "a.key", "cacert.pem", "x.pem", ".git", "hooks", "config", "modules", "info", "attributes", "worktrees",
		".vscode", ".idea", "node_modules", "site-packages", ".kube", ".docker", "config.json", ".cargo", ".ssh", "id_rsa", "main.go", "src", "private", "deep", "client_secret1.json",
	}
	twist := []func(string) string{
		func(s string) string { return s }, func(s string) string { return s }, strings.ToUpper,
		func(s string) string { return strings.Replace(s, "s", "\u017f", 1) },
		func(s string) string { return strings.Replace(s, "k", "\u212a", 1) },
		func(s string) string { return strings.Replace(s, "fi", "\ufb01", 1) },
		func(s string) string { return s[:len(s)/2] + "\u200c" + s[len(s)/2:] },
		func(s string) string { return s + "." },
	}
	o := rules.Options{Mode: rules.ReadWrite, Hide: own("/private/**/deep", "!.kube/config", "!src/x.pem", "!key", "*.k*y"), Protect: own("/src/deep", "!.idea", "!node_modules/.vscode")}
	set, err := rules.Compile(o)
	if err != nil {
		t.Fatal(err)
	}
	forms, _ := ruled(t, false, o)
	random := rand.New(rand.NewPCG(1, 2))
	var hidden, protected, free int
	for range 3000 {
		var parts []string
		for range 1 + random.IntN(4) {
			parts = append(parts, twist[random.IntN(len(twist))](words[random.IntN(len(words))]))
		}
		path := strings.Join(parts, "/")
		v := set.Judge(path)
		at := shared + "/" + path
		switch {
		case v.Hidden:
			hidden++
			if decide(forms, "file-read-data", at) || decide(forms, "file-write-data", at) {
				t.Errorf("%q is not hidden: %s", path, v.Reason)
			}
		case v.Protected:
			protected++
			if decide(forms, "file-write-data", at) || decide(forms, "file-write-create", at) || decide(forms, "file-write-unlink", at) {
				t.Errorf("%q is not protected: %s", path, v.Reason)
			}
		case v.Ancestor:
			if decide(forms, "file-write-unlink", at) || decide(forms, "file-write-create", at) {
				t.Errorf("%q can be moved", path)
			}
		case decide(forms, "file-write-data", at):
			free++
		}
	}
	if hidden < 100 || protected < 50 || free < 50 {
		t.Errorf("%d hidden, %d protected and %d free names are no proof", hidden, protected, free)
	}
}

func TestNamesRefused(t *testing.T) {
	sh := hypervisor.Share{Path: shared, GuestPath: shared}
	for want, tc := range map[string]struct {
		share hypervisor.Share
		names []Names
	}{
		"not known":      {sh, nil},
		":rw":            {sh, []Names{{NoDelete: true}}},
		"is the limit":   {sh, []Names{{Hide: make([]string, maxNames+1)}}},
		"cannot be told": {sh, []Names{{Hide: []string{"é"}}}},
		"is not one":     {sh, []Names{{Protect: []string{"a/**"}}}},
		"quotation":      {hypervisor.Share{Path: `/Users/u/a"b`, GuestPath: `/Users/u/a"b`}, []Names{{Hide: []string{"x"}}}},
		"no review":      {hypervisor.Share{Path: shared, GuestPath: shared, Overlay: true, ReadOnly: true}, []Names{{}}},
	} {
		h := host()
		h.Names = tc.names
		if _, err := Profile(config(tc.share), h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	h := host()
	h.Names = []Names{{Hide: []string{"x"}}}
	if _, err := Profile(config(sh), h); err != nil {
		t.Errorf("control: %v", err)
	}
}
