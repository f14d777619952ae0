package doctor

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
)

var update = flag.Bool("update", false, "write the golden files")

// Each testdata/SYSTEM-NAME.json holds facts of one host, its .golden what is
// said of them.
func TestFindings(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	said := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := show(t, said, judge(t, name, b))
			golden := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("findings:\n%s\nwant:\n%s\nagain: go test ./guest/doctor -update, and look at the difference", got, want)
			}
		})
	}
	for _, topic := range Topics {
		if !said[Page+"#"+string(topic)] {
			t.Errorf("no facts lead to %s: it is said nowhere, or not tested", topic)
		}
	}
}

func judge(t *testing.T, name string, b []byte) []*api.Finding {
	t.Helper()
	read := func(to any) {
		d := json.NewDecoder(strings.NewReader(string(b)))
		d.DisallowUnknownFields()
		if err := d.Decode(to); err != nil {
			t.Fatal(err)
		}
	}
	switch system, _, _ := strings.Cut(name, "-"); system {
	case "linux":
		var l Linux
		read(&l)
		return slices.Concat(l.Host(), l.Walls(), l.KVM.Findings())
	case "macos":
		var m Mac
		read(&m)
		return m.Findings()
	case "windows":
		var w Windows
		read(&w)
		return w.Findings()
	case "any":
		var c Common
		read(&c)
		return c.Findings()
	}
	t.Fatalf("facts of what: %s", name)
	return nil
}

// show writes findings as a person would check them, and holds each to what a
// finding owes: nothing is merely "not available".
func show(t *testing.T, said map[string]bool, fs []*api.Finding) string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%s %s: %s\n", strings.TrimPrefix(f.Level.String(), "FINDING_LEVEL_"), f.Check, f.Text)
		if f.Level == api.FindingLevel_FINDING_LEVEL_GOOD {
			if f.Cure != "" || f.Cause != "" || f.Docs != "" {
				t.Errorf("%s: what is good has no cause, cure or page", f.Text)
			}
			continue
		}
		fmt.Fprintf(&b, "\twhy:  %s\n\tcure: %s\n\tsee:  %s\n", f.Cause, f.Cure, f.Docs)
		said[f.Docs] = true
		if f.Cure == "" || f.Docs == "" || f.Cause == "" && f.Docs != Page+"#"+string(diskFull) {
			t.Errorf("%s: without cause, cure or page", f.Text)
		}
		if generic.MatchString(f.Text + f.Cause) {
			t.Errorf("%s: that says nothing", f.Text)
		}
	}
	return b.String()
}

var generic = regexp.MustCompile(`(?i)(virtuali[sz]ation|hypervisor|feature|driver) (is )?not (available|supported)`)

var heading = regexp.MustCompile(`(?m)^### ([a-z0-9-]+)$`)

// TestPage holds the documentation to the findings: every topic has its heading
// there, and every heading its topic.
func TestPage(t *testing.T) {
	b, err := os.ReadFile("../../" + Page)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(b), -1) {
		if there[m[1]] {
			t.Errorf("%s stands twice in %s", m[1], Page)
		}
		there[m[1]] = true
	}
	for _, topic := range Topics {
		if !there[string(topic)] {
			t.Errorf("%s has no heading ### %s", Page, topic)
		}
		delete(there, string(topic))
	}
	for name := range there {
		if !slices.Contains(ofTheClient, name) {
			t.Errorf("%s has a heading %s, and nothing is found that leads there", Page, name)
		}
	}
}

// ofTheClient are what the command line finds by itself, where no daemon runs.
var ofTheClient = []string{"daemon"}

func TestEntitlements(t *testing.T) {
	const head = `<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd"><plist version="1.0"><dict>`
	for name, c := range map[string]struct {
		plist string
		want  []string
		bad   bool
	}{
		"ours":      {head + `<key>com.apple.security.virtualization</key><true/></dict></plist>`, []string{VirtualizationEntitlement}, false},
		"of others": {head + `<key>a</key><false/><key>b</key><string>true</string><key>c</key><true/></dict></plist>`, []string{"c"}, false},
		"none":      {"", nil, false},
		"cut off":   {head + `<key>com.apple`, nil, true},
		"endless":   {head + strings.Repeat("<key>a</key>", 2*maxPlist), nil, true},
		"no plist":  {"\xfa\xde\x71\x71 <", nil, true},
	} {
		got, err := Entitlements([]byte(c.plist))
		if !slices.Equal(got, c.want) || (err != nil) != c.bad {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/carreld": "/usr/bin/carreld",
		"/Users/a b/c":     "'/Users/a b/c'",
		"it's":             `'it'\''s'`,
		"":                 "''",
		"$(rm)":            "'$(rm)'",
	} {
		if got := quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
