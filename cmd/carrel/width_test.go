package main

import (
	"bytes"
	"slices"
	"testing"
)

func TestFold(t *testing.T) {
	for _, tc := range []struct {
		s    string
		n    int
		want []string
	}{
		{"", 10, []string{""}},
		{"one two three", 0, []string{"one two three"}},
		{"one two three", 7, []string{"one two", "three"}},
		{"one two three", 6, []string{"one", "two", "three"}},
		{"longer-than-that x", 4, []string{"longer-than-that", "x"}},
		{"zwölf äöü", 9, []string{"zwölf äöü"}},
	} {
		if got := fold(tc.s, tc.n); !slices.Equal(got, tc.want) {
			t.Errorf("fold(%q, %d) = %q, want %q", tc.s, tc.n, got, tc.want)
		}
	}
}

func TestClip(t *testing.T) {
	for _, tc := range [][3]string{
		{"abc", "abc", "abc"}, {"abcd", "abcd", "abcd"}, {"abcdef", "abc…", "…def"}, {"äöüäöü", "äöü…", "…äöü"},
	} {
		if got := clip(tc[0], 4); got != tc[1] {
			t.Errorf("clip(%q) = %q", tc[0], got)
		}
		if got := clipFront(tc[0], 4); got != tc[2] {
			t.Errorf("clipFront(%q) = %q", tc[0], got)
		}
	}
}

// A line is cut as a whole, however its pieces come.
func TestClipper(t *testing.T) {
	var b bytes.Buffer
	c := &clipper{w: &b, width: 5}
	for _, s := range []string{"abc", "defg\n12345\n", "x   \n", "rest"} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := b.String(); got != "abcd…\n12345\nx\n" {
		t.Errorf("%q", got)
	}
}

func TestMessage(t *testing.T) {
	if got := message("a b\nc", 0); got != "carrel: a b\\nc\n" {
		t.Errorf("%q", got)
	}
	if got := message("one two three", 16); got != "carrel: one two\n        three\n" {
		t.Errorf("%q", got)
	}
}
