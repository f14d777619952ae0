package carrel_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// forMac are the packages that a guest on macOS is made of.
var forMac = []string{"./agent/...", "./cmd/carrel-agent", "./cmd/carreld", "./hypervisor/seatbelt", "./hypervisor/vz"}

// vzModule is the module that binds Virtualization.framework.
const vzModule = "github.com/Code-Hex/vz/v3"

// TestTypesForMac type-checks them for macOS as a Mac with a C compiler has
// them: with cgo, which cannot be compiled for it elsewhere (make check compiles
// them without).
func TestTypesForMac(t *testing.T) {
	if testing.Short() {
		t.Skip("make check compiles them; this takes a while")
	}
	for _, arch := range []string{"arm64", "amd64"} {
		c, n, err := typecheck("darwin", arch, forMac...)
		if err != nil || n < len(forMac) {
			t.Fatal(n, err)
		}
		for _, e := range c.errs {
			t.Error(arch, e)
		}
		// The daemon drives the framework, by way of the module's own source.
		for _, path := range []string{vzModule, module + "hypervisor/vz", module + "cmd/carreld"} {
			if c.done[path] == nil {
				t.Errorf("%s: %s was not looked at", arch, path)
			}
		}
		if !slices.Contains(c.importers(module+"hypervisor/vz"), module+"cmd/carreld") {
			t.Errorf("%s: the daemon does not import the driver", arch)
		}
		for _, path := range c.importers(vzModule) {
			if strings.HasPrefix(path, module) && path != module+"hypervisor/vz" {
				t.Errorf("%s: %s imports %s, which is the driver's alone", arch, path, vzModule)
			}
		}
	}
}

// TestTypesOfTestsForMac type-checks the driver's tests, which run on a Mac only.
func TestTypesOfTestsForMac(t *testing.T) {
	if testing.Short() {
		t.Skip("make check compiles; this takes a while")
	}
	c, _, err := typecheck("darwin", "arm64", "-test", "./hypervisor/vz")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.errs {
		t.Error(e)
	}
	const with = module + "hypervisor/vz [" + module + "hypervisor/vz.test]"
	if p := c.done[with]; p == nil || p.Scope().Lookup("TestConformance") == nil {
		t.Errorf("the conformance suite on a Mac was not looked at: %v", p)
	}
}

// TestInnerOfModule finds in the module's source what the driver takes out of its
// connections (hypervisor/vz/inner.go).
func TestInnerOfModule(t *testing.T) {
	if testing.Short() {
		t.Skip("make check compiles; this takes a while")
	}
	c, _, err := typecheck("darwin", "arm64", "./hypervisor/vz")
	if err != nil {
		t.Fatal(err)
	}
	field := func(of, name string) string {
		o := c.done[vzModule].Scope().Lookup(of)
		if o == nil {
			return ""
		}
		s, ok := o.Type().Underlying().(*types.Struct)
		for i := range s.NumFields() {
			if f := s.Field(i); ok && f.Name() == name {
				return f.Type().String()
			}
		}
		return ""
	}
	if got := field("VirtioSocketConnection", "rawConn"); got != "net.Conn" {
		t.Errorf("VirtioSocketConnection has rawConn of type %q", got)
	}
	if got := field("VirtioSocketConnection", "noConn"); got != "" { // it can fail
		t.Errorf("a field that is not there has the type %q", got)
	}
}

// TestTypesCatchModule plants misuses of the module, which must all be found.
func TestTypesCatchModule(t *testing.T) {
	if testing.Short() {
		t.Skip("make check compiles; this takes a while")
	}
	for arch, want := range map[string]int{"arm64": 6, "amd64": 7} { // one is right on arm64
		c, _, err := typecheck("darwin", arch, "./testdata/crosscheck/vz")
		if err != nil {
			t.Fatal(err)
		}
		if len(c.errs) != want {
			t.Errorf("%s: %d mistakes were found of %d: %v", arch, len(c.errs), want, c.errs)
		}
	}
}

// TestTypesCatch shows that the test above can fail.
func TestTypesCatch(t *testing.T) {
	c, _, err := typecheck("darwin", "arm64", "./testdata/crosscheck")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.errs) != 3 {
		t.Errorf("%d mistakes were found of 3: %v", len(c.errs), c.errs)
	}
}

// listed is a package as go list describes it.
type listed struct {
	ImportPath, Dir   string
	GoFiles, CgoFiles []string
	ImportMap         map[string]string
	DepOnly           bool
	Error             *struct{ Err string }
}

// checker type-checks packages from their source. Files with cgo are parsed, and
// what they import as "C" is taken for granted.
type checker struct {
	files *token.FileSet
	arch  string
	meta  map[string]*listed
	done  map[string]*types.Package
	errs  []error // in what is not only a dependency
}

// sourceImporter imports for one package.
type sourceImporter struct {
	c    *checker
	from *listed
}

func (i sourceImporter) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if m, ok := i.from.ImportMap[path]; ok {
		path = m
	}
	return i.c.check(path)
}

func (c *checker) check(path string) (*types.Package, error) {
	if p, ok := c.done[path]; ok {
		if p == nil {
			return nil, errors.New("import cycle: " + path)
		}
		return p, nil
	}
	m := c.meta[path]
	if m == nil {
		return nil, fmt.Errorf("%s: not listed", path)
	}
	c.done[path] = nil
	ours := strings.HasPrefix(path, strings.TrimSuffix(module, "/"))
	var all []*ast.File
	for _, f := range append(append([]string(nil), m.GoFiles...), m.CgoFiles...) {
		file, err := parser.ParseFile(c.files, filepath.Join(m.Dir, f), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		all = append(all, file)
	}
	config := types.Config{
		FakeImportC: true, Importer: sourceImporter{c, m}, Sizes: types.SizesFor("gc", c.arch),
		IgnoreFuncBodies: !ours, // others' use C for real
		Error: func(err error) {
			if ours {
				c.errs = append(c.errs, err)
			}
		},
	}
	p, _ := config.Check(path, c.files, all, nil)
	c.done[path] = p
	return p, nil
}

// importers returns the packages that import path.
func (c *checker) importers(path string) (from []string) {
	for name, p := range c.done {
		if p != nil && slices.ContainsFunc(p.Imports(), func(i *types.Package) bool { return i.Path() == path }) {
			from = append(from, name)
		}
	}
	return from
}

// typecheck returns a checker that has looked at packages and at those that they
// import, and how many packages the patterns name.
func typecheck(goos, goarch string, patterns ...string) (c *checker, n int, err error) {
	cmd := exec.Command("go", append([]string{"list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,DepOnly,Error"}, patterns...)...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("go list: %w: %s", err, &stderr)
	}
	c = &checker{files: token.NewFileSet(), arch: goarch, meta: map[string]*listed{}, done: map[string]*types.Package{}}
	var roots []string
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		if err := dec.Decode(p); err == io.EOF {
			break
		} else if err != nil {
			return nil, 0, err
		}
		c.meta[p.ImportPath] = p
		if p.DepOnly {
			continue
		}
		if p.Error != nil { // -e: what is missing must not just vanish
			if strings.Contains(p.Error.Err, "build constraints exclude all") {
				continue // it is another system's
			}
			return nil, 0, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		if strings.HasSuffix(p.ImportPath, ".test") {
			continue // go test makes its main while it runs
		}
		roots = append(roots, p.ImportPath)
	}
	for _, r := range roots {
		if _, err := c.check(r); err != nil {
			return nil, 0, err
		}
	}
	return c, len(roots), nil
}
