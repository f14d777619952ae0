package images

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestBuildKernel: each architecture has its own, an image's build finds the one that is its own, and
// nobody who looks for a kernel to boot finds another's.
func TestBuildKernel(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "cache"))
	recipes, counts := fakeRecipes(t, goodKernel+"echo $2 >$out/vmlinuz\n", goodRoot)
	o := BuildOptions{Name: "default", Recipes: recipes, Agent: fakeAgent(t, "")}
	for range 2 {
		for _, arch := range []string{"amd64", "arm64"} {
			path, err := s.BuildKernel(t.Context(), arch, o)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != arch+"\n" {
				t.Errorf("kernel for %s: %q, %v", arch, b, err)
			}
		}
	}
	if n := ran(t, counts, "kernel"); n != 2 {
		t.Errorf("the recipe ran %d times for two architectures", n)
	}
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if n := ran(t, counts, "kernel"); n != 2 {
		t.Errorf("the image's build ran the recipe again: %d times", n)
	}
	found, _ := filepath.Glob(filepath.Join(s.cache, "kernel", "*", Kernel))
	if len(found) != 1 {
		t.Errorf("in the place of the first architecture's kernels: %q", found)
	}
	for _, arch := range []string{"", "riscv64", "../arm64"} {
		if _, err := s.BuildKernel(t.Context(), arch, o); err == nil || !strings.Contains(err.Error(), "amd64 and arm64") {
			t.Errorf("BuildKernel for %q: %v", arch, err)
		}
	}
}

var (
	optionLine = regexp.MustCompile(`^(CONFIG_[A-Z0-9_]+)=(?:[yn]|-?[0-9]+|"[ -~]*")$`)
	listLine   = regexp.MustCompile(`(?m)^fragments='([a-z0-9 ]+)'$`)
	archLine   = regexp.MustCompile(`(?m)^(amd64|arm64)\) .*fragments\+=' ([a-z0-9 ]+)'`)
)

// fragmentFaults says what is wrong with fragments that are merged in this order.
func fragmentFaults(name string, text []byte, seen map[string]string) (faults []string) {
	if !bytes.HasPrefix(text, []byte("# ")) {
		faults = append(faults, name+" does not begin with what it is for")
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "# ") {
			continue
		}
		m := optionLine.FindStringSubmatch(line)
		switch {
		case m == nil:
			faults = append(faults, name+": not an option: "+line)
		case seen[m[1]] != "":
			faults = append(faults, name+": "+m[1]+" is in "+seen[m[1]]+" already")
		default:
			seen[m[1]] = name
		}
	}
	return faults
}

// TestFragments: what a kernel is made of is readable, names nothing twice, and is in docs/kernel.md.
func TestFragments(t *testing.T) {
	build, err := recipes.ReadFile("kernel/build")
	if err != nil {
		t.Fatal(err)
	}
	common := listLine.FindSubmatch(build)
	arches := archLine.FindAllSubmatch(build, -1)
	if common == nil || len(arches) != 2 {
		t.Fatal("images/kernel/build does not say which fragments make a kernel")
	}
	doc, err := os.ReadFile("../docs/kernel.md")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, a := range arches {
		seen := map[string]string{}
		for _, name := range strings.Fields(string(common[1]) + " " + string(a[2])) {
			used[name] = true
			text, err := recipes.ReadFile("kernel/config/" + name + ".config")
			if err != nil {
				t.Error(err)
				continue
			}
			for _, f := range fragmentFaults(name, text, seen) {
				t.Errorf("%s: %s", a[1], f)
			}
			if !bytes.Contains(doc, []byte("`"+name+"`")) {
				t.Errorf("docs/kernel.md does not tell of the fragment %s", name)
			}
		}
		for _, must := range []string{"CONFIG_MODULES", "CONFIG_IO_URING", "CONFIG_USER_NS"} {
			if seen[must] == "" {
				t.Errorf("%s: no fragment decides about %s", a[1], must)
			}
		}
	}
	files, err := fs.Glob(recipes, "kernel/config/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !used[strings.TrimSuffix(filepath.Base(f), ".config")] {
			t.Errorf("%s is in no kernel", f)
		}
	}
	got := fragmentFaults("x", []byte("CONFIG_A=y\nCONFIG_A=n\nCONFIG_B=m\n#CONFIG_C=y\n"), map[string]string{})
	if len(got) != 4 || !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "CONFIG_B=m") }) {
		t.Errorf("of four faults these are seen: %q", got)
	}
}
