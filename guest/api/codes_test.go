package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// words says, for each function that takes the word of an error, which argument
// that is.
var words = map[string]int{"NewError": 1, "NewRetryError": 1, "refuse": 0, "imageError": 0, "secretError": 0, "with": 1}

// passedOn are the files in which a word is a value that somebody else chose
// from the list: a caller, another process, the switch above.
var passedOn = map[string]bool{
	"guest/daemon/images.go": true, "guest/live.go": true, "guest/policy/policy.go": true, "guest/daemon/refusal.go": true,
	"guest/daemon/words.go": true, "guest/review/request.go": true, "guest/daemon/review.go": true, "guest/daemon/secrets.go": true,
}

// wordsOf returns the words of errors in a file, and where one is no literal.
func wordsOf(t *testing.T, file string, src any) (found []string, open []string) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	note := func(x ast.Expr) {
		if l, ok := x.(*ast.BasicLit); ok && l.Kind == token.STRING {
			s, _ := strconv.Unquote(l.Value)
			found = append(found, s)
			return
		}
		open = append(open, fset.Position(x.Pos()).String())
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			name, of := "", ""
			switch f := n.Fun.(type) {
			case *ast.Ident:
				name = f.Name
			case *ast.SelectorExpr:
				if name = f.Sel.Name; name == "NewError" {
					if x, ok := f.X.(*ast.Ident); ok {
						of = x.Name
					}
				}
			}
			if at, is := words[name]; is && (name != "refuse" || strings.Contains(file, "guest/policy/")) && of != "connect" && len(n.Args) > at {
				if _, text := n.Args[at].(*ast.BasicLit); name != "NewError" && !text {
					return true // another function of that name
				}
				note(n.Args[at])
			}
		case *ast.CompositeLit:
			is := ""
			switch x := n.Type.(type) {
			case *ast.Ident:
				is = x.Name
			case *ast.SelectorExpr:
				is = x.Sel.Name
			}
			if is != "Refusal" && is != "Error" && is != "ErrorDetail" {
				return true
			}
			for _, e := range n.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if k, ok := kv.Key.(*ast.Ident); ok && k.Name == "Code" {
						note(kv.Value)
					}
				}
			}
		case *ast.AssignStmt:
			for i, l := range n.Lhs {
				id, _ := l.(*ast.Ident)
				sel, _ := l.(*ast.SelectorExpr)
				word := id != nil && id.Name == "word" && (strings.HasSuffix(file, "guest/daemon/words.go") || strings.HasSuffix(file, "guest/daemon/secrets.go"))
				code := sel != nil && sel.Sel.Name == "Code" && strings.HasSuffix(file, "guest/client/error.go")
				if i < len(n.Rhs) && (word || code) {
					note(n.Rhs[i])
				}
			}
		}
		return true
	})
	return found, open
}

// Every error of the daemon and its processes has a word of the list, and the list has no word that no
// error has.
func TestCodes(t *testing.T) {
	used := map[string]bool{}
	files := 0
	for _, dir := range []string{"guest", "cmd"} {
		err := filepath.WalkDir("../../"+dir, func(path string, d fs.DirEntry, err error) error {
			name := filepath.ToSlash(strings.TrimPrefix(path, "../../"))
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "guest/api/carrel.pb") || strings.HasPrefix(name, "guest/api/apiconnect") || name == "guest/api/errors.go" {
				return err
			}
			files++
			found, open := wordsOf(t, path, nil)
			for _, w := range found {
				// What programs beside the daemon say to their callers is theirs.
				own := strings.HasPrefix(name, "guest/client/") || strings.HasPrefix(name, "cmd/carrel/")
				if used[w] = true; Codes[w] == "" && !own {
					t.Errorf("%s: the word %q is not in api.Codes", name, w)
				}
			}
			for _, at := range open {
				if !passedOn[name] && !strings.HasPrefix(name, "guest/client/") {
					t.Errorf("%s: the word of an error must be a literal here, so that the list is whole", at)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 100 || len(used) < 60 {
		t.Fatalf("%d words in %d files: the search does not find what it should", len(used), files)
	}
	for w := range Codes {
		if !used[w] {
			t.Errorf("no error has the word %q", w)
		}
	}
}

// TestCodesCatch shows that the test above can fail.
func TestCodesCatch(t *testing.T) {
	found, open := wordsOf(t, "x.go", `package x
		func f(w string) error {
			if w == "" { return api.NewError(connect.CodeInternal, "made_up", "", "") }
			if w == "a" { return connect.NewError(connect.CodeInternal, nil) }
			if w == "b" { return &policy.Refusal{Code: "made_up_too"} }
			return api.NewError(connect.CodeInternal, w, "", "")
		}`)
	if strings.Join(found, " ") != "made_up made_up_too" || len(open) != 1 {
		t.Fatalf("found %q, open %q", found, open)
	}
}
