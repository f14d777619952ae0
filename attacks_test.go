package carrel_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// attack is one row of docs/attacks.yaml.
type attack struct {
	ID   string `yaml:"id"`
	What string `yaml:"what"`
	// Test and Control are "package folder: TestName" or, for a script,
	// "package folder: TestName/script". Control may be "same": the test holds
	// its own positive control.
	Test      []string `yaml:"test"`
	Control   []string `yaml:"control"`
	Ring      []int    `yaml:"ring"`
	Platforms []string `yaml:"platforms"`
	// NotApplicable says why a case cannot apply here; then there is no test.
	NotApplicable string `yaml:"not_applicable"`
	// Open says what of the case no test shows yet.
	Open string `yaml:"open"`
}

// TestAttackTable holds the table to the tree: every case that is claimed has
// its test, every test a positive control, and both exist.
func TestAttackTable(t *testing.T) {
	f, err := os.Open("docs/attacks.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	var rows []attack
	if err := dec.Decode(&rows); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.ID] {
			t.Errorf("%s stands twice", r.ID)
		}
		seen[r.ID] = true
		if r.NotApplicable != "" {
			if len(r.Test) > 0 {
				t.Errorf("%s is not applicable and has a test", r.ID)
			}
			continue
		}
		if r.What == "" || len(r.Test) == 0 || len(r.Control) == 0 || len(r.Ring) == 0 || len(r.Platforms) == 0 {
			t.Errorf("%s: what, test, control, ring or platforms is missing", r.ID)
		}
		for _, name := range append(append([]string(nil), r.Test...), r.Control...) {
			if name == "same" {
				continue
			}
			if why := missing(t, name); why != "" {
				t.Errorf("%s: %s: %s", r.ID, name, why)
			}
		}
	}
	for _, id := range strings.Fields(claimed) {
		if !seen[id] {
			t.Errorf("case %s is promised and has no row", id)
		}
	}
}

// claimed are the cases of the catalogue that this version answers for.
const claimed = `S01 S02 S03 S04 S05 S06 S07 S08 S10 S12 S13 S14 S15 S18 S19
H01 H02 H03 H04 H05 H07 H09 H10 H11 H12
P01 P02 P03 P04 P05 P06 P07 P10 P11 P13 P15 P16
A01 A02 A03 A04 A05 A06 A07 A08 A10 A11 A13 A14
E01 E02 E03 E04 E06 E09 E10 E12 E14 E15 E16 E17 E18 E19 E20 E21 E22 E23 E24 E26 E27 E28 E29 E30 E31 E32 E33 E34
C01 C02 C03 C05 C06 C07 C08 C09 C10 C11 C13 C14 P08 P09
R01 R02 R03 R04 R06 R08 R09 R10 R11 R12
I01 I02 I03 I05 I06 I07 I08 I09 I10 I11 I12 I13 I14 I15
F01 F02 F03 F04 F05 F06 F08 F09 F10 F11 F12 F14 F15 F16 F17 F18 F19 F20 F21 F22 F23
T01 T02`

// TestAttackTableCatches shows that the test above can fail.
func TestAttackTableCatches(t *testing.T) {
	for _, bad := range []string{"guest: TestNoSuchThing", "nowhere: TestExecControl", "guest", "cmd/carrel: TestScripts/no-such-script"} {
		if missing(t, bad) == "" {
			t.Errorf("%q was found", bad)
		}
	}
	if why := missing(t, "guest: TestExecControl"); why != "" {
		t.Error(why)
	}
}

// missing says what is wrong with the name of a test, or "".
func missing(t *testing.T, name string) string {
	t.Helper()
	dir, test, ok := strings.Cut(name, ": ")
	if !ok {
		return "not of the form folder: TestName"
	}
	test, sub, _ := strings.Cut(test, "/")
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		return "no tests there"
	}
	fn := regexp.MustCompile(`(?m)^func ` + regexp.QuoteMeta(test) + `\(`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !fn.Match(b) {
			continue
		}
		if sub == "" || strings.Contains(string(b), `"`+sub+`"`) {
			return ""
		}
		if m, _ := filepath.Glob(filepath.Join(dir, "testdata", "*", sub+".txt*")); len(m) > 0 {
			return ""
		}
		return "no such sub-test or script"
	}
	return "no such test"
}
