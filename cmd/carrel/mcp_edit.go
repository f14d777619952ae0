package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/carrel-vm/carrel/guest/client"
)

const (
	// serverName is what we are called in a program's settings.
	serverName = "carrel"
	// maxSettings bounds a file of settings, in bytes, and maxBackups how many
	// copies of it are kept beside it.
	maxSettings, maxBackups = 32 << 20, 100
)

// edit is one file of settings, as it is and as it is to be.
type edit struct {
	file          string // through all links
	before, after []byte // before is nil if there is no file
	mode          fs.FileMode
	shown         string // what a person sees of it
}

// prepare puts entry into the object key of a file of JSON, with or without
// comments, or takes ours out. Every other byte stays as it is. nil: there is
// nothing to take out.
func prepare(file, key string, entry serverEntry, remove bool) (*edit, error) {
	e := &edit{file: file, mode: 0o600}
	refuse := func(err error) error {
		return &client.Error{Code: "settings_unreadable", Message: "nothing was written to " + e.file, Cause: err.Error(), Cure: "mend the file, or move it away, and try again"}
	}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		e.file = real
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(err)
	} else if isThere(file) {
		return nil, refuse(errors.New("it is a link to something that is not there"))
	}
	if err := e.read(); err != nil {
		return nil, refuse(err)
	}
	if e.before == nil && remove {
		return nil, nil
	}
	text := e.before
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{\n}\n")
	}
	v, err := hujson.Parse(text)
	if err != nil {
		return nil, refuse(err)
	}
	top, ok := v.Value.(*hujson.Object)
	if !ok {
		return nil, refuse(errors.New("it is not an object"))
	}
	if err := once(top, key); err != nil {
		return nil, refuse(err)
	}
	servers := member(top, key)
	if servers == nil {
		if remove {
			return nil, nil
		}
		put(top, key, []byte("{}"), indentOf(top, ""), "\n")
		servers = member(top, key)
	}
	in, ok := servers.Value.(*hujson.Object)
	if !ok {
		return nil, refuse(fmt.Errorf("%q in it is not an object", key))
	}
	if err := once(in, serverName); err != nil {
		return nil, refuse(err)
	}
	old := member(in, serverName)
	was := ""
	if old != nil {
		was = strings.TrimSpace(hujson.Value{Value: old.Value}.String())
	}
	if remove {
		if old == nil {
			return nil, nil
		}
		take(in, serverName)
		e.shown = `- "` + serverName + `": ` + was
	} else {
		outer := indentOf(top, "")
		inner := indentOf(in, outer)
		unit := strings.TrimPrefix(inner, outer)
		if unit == inner || unit == "" {
			unit = "  "
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent(strings.TrimPrefix(inner, "\n"), unit)
		if err := enc.Encode(entry); err != nil {
			return nil, err
		}
		put(in, serverName, bytes.TrimSpace(b.Bytes()), inner, outer)
		e.shown = `"` + serverName + `": ` + strings.ReplaceAll(b.String(), inner, "\n")
		if was != "" {
			e.shown = `- "` + serverName + `": ` + was + "\n+ " + e.shown
		}
	}
	e.after = v.Pack()
	// What will be written must be what a program can read. (Standardize works in
	// place, on bytes that Parse shares.)
	if again, err := hujson.Parse(bytes.Clone(e.after)); err != nil {
		return nil, refuse(fmt.Errorf("what would be written is no JSON: %w", err))
	} else if again.Standardize(); !json.Valid(again.Pack()) {
		return nil, refuse(errors.New("what would be written is no JSON"))
	}
	return e, nil
}

func (e *edit) read() error {
	f, err := os.Open(e.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case fi.Size() > maxSettings:
		return fmt.Errorf("it has more than %d bytes", maxSettings)
	}
	e.mode = fi.Mode().Perm()
	e.before, err = io.ReadAll(io.LimitReader(f, maxSettings+1))
	if e.before == nil {
		e.before = []byte{}
	}
	return err
}

// write replaces the file whole, and returns where what it was is kept.
func (e *edit) write() (backup string, err error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("write %s: %w", e.file, err) }
	if err := os.MkdirAll(filepath.Dir(e.file), 0o700); err != nil {
		return fail(err)
	}
	now := &edit{file: e.file}
	if err := now.read(); err != nil {
		return fail(err)
	}
	if !bytes.Equal(now.before, e.before) || (now.before == nil) != (e.before == nil) {
		return fail(errors.New("it was changed meanwhile (try again)"))
	}
	if e.before != nil {
		if backup, err = e.keep(); err != nil {
			return fail(err)
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(e.file), ".carrel-")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp.Name()) // once it has its name there is none of that name
	_, err = tmp.Write(e.after)
	for _, step := range []func() error{func() error { return tmp.Chmod(e.mode) }, tmp.Sync} {
		if err == nil {
			err = step()
		}
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), e.file)
	}
	if err != nil {
		return fail(err)
	}
	return backup, nil
}

// keep copies the file beside itself, under a name that is not taken.
func (e *edit) keep() (string, error) {
	for n := 1; n <= maxBackups; n++ {
		name := e.file + ".before-carrel"
		if n > 1 {
			name += fmt.Sprintf(".%d", n)
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = f.Write(e.before)
		if serr := f.Sync(); err == nil {
			err = serr
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return name, err
	}
	return "", fmt.Errorf("there are %d copies of it already: remove %s.before-carrel*", maxBackups, e.file)
}

func nameOf(m hujson.ObjectMember) string {
	l, _ := m.Name.Value.(hujson.Literal)
	return l.String()
}

// once refuses an object that has a name twice: readers differ in which one counts.
func once(o *hujson.Object, name string) error {
	n := 0
	for _, m := range o.Members {
		if nameOf(m) == name {
			n++
		}
	}
	if n > 1 {
		return fmt.Errorf("%q is in it %d times", name, n)
	}
	return nil
}

func member(o *hujson.Object, name string) *hujson.Value {
	for i := range o.Members {
		if nameOf(o.Members[i]) == name {
			return &o.Members[i].Value
		}
	}
	return nil
}

// indentOf is what stands before a member of o: a new line and its indentation.
func indentOf(o *hujson.Object, outer string) string {
	for _, m := range o.Members {
		if i := strings.LastIndexByte(string(m.Name.BeforeExtra), '\n'); i >= 0 {
			ws := string(m.Name.BeforeExtra)[i:]
			return ws[:len(ws)-len(strings.TrimLeft(ws, "\n\t "))]
		}
	}
	if outer == "" {
		return "\n  "
	}
	unit := strings.TrimPrefix(outer, "\n")
	return outer + unit
}

// put sets a member, at the end of o if it is new. before stands before it, and
// closing before o's brace where that has no line of its own yet.
func put(o *hujson.Object, name string, raw []byte, before, closing string) {
	v, err := hujson.Parse(raw)
	if err != nil {
		panic(err) // it is ours
	}
	if m := member(o, name); m != nil {
		m.Value = v.Value
		return
	}
	// What stands before the brace stays there, but a comment belongs to what it
	// follows.
	comment, end := "", string(o.AfterExtra)
	if i := strings.LastIndexByte(end, '\n'); i >= 0 {
		comment, end = end[:i], end[i:]
	} else {
		comment, end = strings.TrimRight(end, " \t"), closing
	}
	if strings.TrimSpace(comment) == "" {
		comment = ""
	}
	o.AfterExtra = hujson.Extra(end)
	m := hujson.ObjectMember{Name: hujson.Value{BeforeExtra: hujson.Extra(comment + before), Value: hujson.String(name)}, Value: v}
	m.Value.BeforeExtra = hujson.Extra(" ")
	if n := len(o.Members); n > 0 && o.Members[n-1].Value.AfterExtra != nil {
		m.Value.AfterExtra = hujson.Extra{} // a comma comes last here
	}
	o.Members = append(o.Members, m)
}

// take removes a member.
func take(o *hujson.Object, name string) {
	i := slices.IndexFunc(o.Members, func(m hujson.ObjectMember) bool { return nameOf(m) == name })
	comma := o.Members[i].Value.AfterExtra != nil && i == len(o.Members)-1
	// A comment before it may be about what comes before that.
	if before := string(o.Members[i].Name.BeforeExtra); strings.TrimSpace(before) != "" {
		comment := strings.TrimRight(before, " \t\n")
		next := &o.AfterExtra
		if i+1 < len(o.Members) {
			next = &o.Members[i+1].Name.BeforeExtra
		}
		*next = hujson.Extra(comment + string(*next))
	}
	o.Members = slices.Delete(o.Members, i, i+1)
	switch n := len(o.Members); {
	case n == 0 && strings.TrimSpace(string(o.AfterExtra)) == "":
		o.AfterExtra = nil
	case n > 0 && comma && o.Members[n-1].Value.AfterExtra == nil:
		o.Members[n-1].Value.AfterExtra = hujson.Extra{}
	}
}
