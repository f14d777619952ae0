package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// A13, H11: names with every byte that a name may have. Those that the API has a
// form for (UTF-8) are listed, read and copied as they are; the others are
// counted as left out by a look and by a copy, which says one by name, and nothing else comes
// of them: the daemon, the keeper and the guest go on.
func TestEveryByteInNames(t *testing.T) {
	w := newRing2(t)
	w.start()
	c := w.client()
	w.guest(c, "box")
	good, bad := filepath.Join(w.work, "good"), filepath.Join(w.work, "bad")
	content := map[string]string{}
	for _, d := range []string{good, bad} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	odd := 0
	add := func(name string) {
		dir := good
		if !utf8.ValidString(name) {
			dir = bad
			odd++
		}
		content[name] = fmt.Sprintf("in %q", name)
		write(t, filepath.Join(dir, name), content[name])
	}
	var every []byte
	for b := 1; b < 256; b++ {
		if b == '/' {
			continue
		}
		every = append(every, byte(b))
		if b != '.' {
			add(string([]byte{byte(b)}))
		}
		if b >= 0x80 {
			add("r" + string(rune(b)))
		}
	}
	add(string(every[:126]))
	add(string(every[126:]))
	add("\u202egnp.exe")
	add(". ")

	list := new(api.ListFilesResponse)
	w.must("FileService/List", &api.ListFilesRequest{Guest: "box", Path: good}, list)
	if int(list.LeftOut) != 0 || len(list.Entries) != len(content)-odd {
		t.Errorf("%d entries, %d left out, of %d", len(list.Entries), list.LeftOut, len(content)-odd)
	}
	for i, e := range list.Entries {
		if content[e.Name] == "" {
			t.Errorf("%q is listed, which there is not", e.Name)
			continue
		}
		if i%8 != 0 && len(e.Name) != 1 { // each byte once; the copy below reads all
			continue
		}
		got := new(api.ReadFileResponse)
		w.must("FileService/Read", &api.ReadFileRequest{Guest: "box", Path: filepath.Join(good, e.Name)}, got)
		if string(got.Data) != content[e.Name] {
			t.Errorf("%q holds %q", e.Name, got.Data)
		}
	}
	list.Reset()
	w.must("FileService/List", &api.ListFilesRequest{Guest: "box", Path: bad}, list)
	if len(list.Entries) != 0 || int(list.LeftOut) != odd || odd < 128 {
		t.Errorf("of %d names that are not UTF-8 %d are listed, %d left out", odd, len(list.Entries), list.LeftOut)
	}

	// Out and in again.
	copied := filepath.Join(w.work, "copied")
	if err := c.Get(t.Context(), "box", good, copied, client.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(w.work, "again")
	if err := c.Put(t.Context(), "box", copied, again, client.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, text := range content {
		if !utf8.ValidString(name) {
			continue
		}
		for _, dir := range []string{copied, again} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != text {
				t.Errorf("%s: %q holds %q: %v", filepath.Base(dir), name, b, err)
			}
		}
	}
	// What cannot be named is not copied, and the error says how much of it there is, and one.
	if err := os.Symlink("to\xff", filepath.Join(bad, "leads")); err != nil {
		t.Fatal(err)
	}
	err := c.Get(t.Context(), "box", bad, filepath.Join(w.work, "none"), client.CopyOptions{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d entries have names", odd+1)) || !strings.Contains(err.Error(), `\x`) && !strings.Contains(err.Error(), "bad/leads") {
		t.Errorf("a copy of names that are not UTF-8: %v", err)
	}
	in := filepath.Join(w.work, "in")
	for what, make := range map[string]func() error{
		"a name":        func() error { return os.WriteFile(filepath.Join(in, "a\xffb"), nil, 0o600) },
		"a link's goal": func() error { return os.Symlink("a\xffb", filepath.Join(in, "link")) },
	} {
		if err := errors.Join(os.RemoveAll(in), os.Mkdir(in, 0o700), make()); err != nil {
			t.Fatal(err)
		}
		if err := c.Put(t.Context(), "box", in, filepath.Join(w.work, "in2"), client.CopyOptions{}); err == nil || !strings.Contains(err.Error(), `"a\xffb"`) {
			t.Errorf("%s that is not UTF-8, into the guest: %v", what, err)
		}
	}
	if r := sh(t, c, "box", "", "echo still here"); r.out != "still here\n" {
		t.Errorf("afterwards: %+v", r)
	}
}
