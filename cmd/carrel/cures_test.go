package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// What the program tells its reader to type can be typed: each `carrel ...` in a text
// of the sources, as in what mends an error, is a command that is there, with flags
// and arguments that it takes.
func TestCures(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was there a moment ago
			return nil
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			text, ok := textOf(e)
			if !ok {
				return true
			}
			if text == "carrel allow "+thing || text == "carrel deny "+thing {
				return false // by which a rule came, and not what it says
			}
			for _, words := range commandsIn(text) {
				seen++
				if err := typed(words); err != nil {
					t.Errorf("%s: carrel %s: %v", files.Position(e.Pos()), strings.Join(words, " "), err)
				}
			}
			return false
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("only %d commands were found", seen)
	}
}

// thing stands in a text for what it gets when the program runs, and for the
// placeholders of which it speaks: NAME, KEYFILE.
const thing = "x"

var (
	verb        = regexp.MustCompile(`%[-+#0-9.\[\]*]*[a-zA-Z]`)
	placeholder = regexp.MustCompile(`^[A-Z][A-Z:\[\]]+$`)
	spoken      = regexp.MustCompile("(?:^|[ (`'])carrel ([a-z][^\\n,;()`|]*)")
)

// textOf is what a string in the sources says; ok is false of what is none.
func textOf(e ast.Expr) (text string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return verb.ReplaceAllString(text, thing), err == nil
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "", false
		}
		x, isX := textOf(e.X)
		y, isY := textOf(e.Y)
		switch {
		case !isX && !isY:
			return "", false
		case !isX:
			x = thing
		case !isY:
			y = thing
		}
		return x + y, true
	}
	return "", false
}

// commandsIn lists the commands in a text of which more is said than their names, as
// their words: verbs, flags and placeholders, up to the first word of another kind.
func commandsIn(text string) (all [][]string) {
	for _, m := range spoken.FindAllStringSubmatch(text, -1) {
		cmd := new(app).rootCommand()
		var words []string
		verbs := 0
		for _, w := range strings.Fields(m[1]) {
			word := strings.TrimRight(w, ":.")
			if sub, _, err := cmd.Find([]string{word}); err == nil && sub != cmd && verbs == len(words) {
				cmd, verbs = sub, verbs+1
			} else if placeholder.MatchString(word) || strings.Trim(word, thing) == "" {
				word = thing
			} else if word != thing && !strings.HasPrefix(word, "-") {
				break
			}
			words = append(words, word)
			if strings.ContainsAny(w[len(w)-1:], ":.") { // the sentence ends
				break
			}
		}
		if len(words) > verbs && cmd.HasParent() {
			all = append(all, words)
		}
	}
	return all
}

// typed says why the program would not take a command line. Where no argument is
// named it is a flag of which the text speaks.
func typed(words []string) error {
	cmd, rest, err := new(app).rootCommand().Find(words)
	if err != nil {
		return err
	}
	if !cmd.Runnable() {
		return fmt.Errorf("%q is no command", cmd.CommandPath())
	}
	if !slices.Contains(rest, thing) {
		if err := cmd.ParseFlags(append(rest, "0")); !errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return nil
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// What TestCures would say of one that cannot be typed.
func TestCuresAreRead(t *testing.T) {
	for text, good := range map[string]bool{
		"no key (carrel image trust KEYFILE, with the key of whoever)":            false,
		"no key (carrel image trust KEYFILE --for NAME, with the key of whoever)": true,
		"carrel rm --fore x": false,
		"carrel rm --force x throws it away, or: carrel rm x": true,
		"left until carrel daemon uninstall --all: x":         true,
		"carrel inspect NAME NAME":                            false,
		"look again: carrel diff x --made-up":                 false,
		"see `carrel run --share`":                            true,
	} {
		all := commandsIn(text)
		if len(all) == 0 {
			t.Errorf("%q: no command is found", text)
		}
		err := error(nil)
		for _, words := range all {
			err = errors.Join(err, typed(words))
		}
		if good != (err == nil) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
