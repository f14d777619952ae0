package main

import (
	"bytes"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// width is how many characters a line of f may have, or 0 where f is no
// terminal: what reads a file or a pipe needs whole lines.
func width(f *os.File) int {
	if !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// table returns where a table is written to: on a terminal each of its lines
// stays one.
func (a *app) table() io.Writer {
	if w := width(a.out); w > 0 {
		return &clipper{w: a.out, width: w}
	}
	return a.out
}

// clipper cuts lines that are too long.
type clipper struct {
	w     io.Writer
	width int
	rest  []byte // of a line
}

func (c *clipper) Write(p []byte) (int, error) {
	c.rest = append(c.rest, p...)
	for {
		line, rest, ok := bytes.Cut(c.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if _, err := io.WriteString(c.w, clip(strings.TrimRight(string(line), " "), c.width)+"\n"); err != nil {
			return 0, err
		}
		c.rest = rest
	}
}

// clip shortens s to n characters.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// clipFront does so where the end says more than the beginning, as in paths.
func clipFront(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return "…" + string(r[len(r)-n+1:])
}

// fold breaks s between words so that no line is longer than n characters; 0
// is no limit. A word that is longer has a line of its own.
func fold(s string, n int) []string {
	if n <= 0 {
		return []string{s}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) > n:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
