package guest

import (
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// R10, P13: what a guest says of its files is held to what was asked for; one
// that breaks the rules is ended. The control is a guest that keeps them.
func TestLookViolations(t *testing.T) {
	file := func(f *wire.File) *wire.Copy { return &wire.Copy{Kind: &wire.Copy_File{File: f}} }
	data := func(s string) *wire.Copy { return &wire.Copy{Kind: &wire.Copy_Data{Data: []byte(s)}} }
	done := &wire.Copy{Kind: &wire.Copy_Done{Done: &wire.Done{}}}
	folder := file(&wire.File{Name: "x", Type: wire.FileType_FILE_TYPE_DIRECTORY})
	entry := func(name string) *wire.Copy {
		return file(&wire.File{Name: name, Type: wire.FileType_FILE_TYPE_REGULAR, Whole: 3})
	}
	part := func(size int64) *wire.Copy {
		return file(&wire.File{Name: "x", Type: wire.FileType_FILE_TYPE_REGULAR, Size: size, Whole: 100})
	}
	many := []*wire.Copy{folder}
	for range wire.MaxLook + 1 {
		many = append(many, entry("a"))
	}
	long := []*wire.Copy{folder} // past the bound of bytes, after which entries are only counted
	for range wire.MaxLook + 1 {
		long = append(long, entry(strings.Repeat("x", 255)))
	}
	for name, c := range map[string]struct {
		says []*wire.Copy
		read bool
		want string // of the error; empty: none
	}{
		"control":           {says: []*wire.Copy{folder, entry("a"), entry("b"), done}},
		"control, read":     {read: true, says: []*wire.Copy{part(5), data("ab"), data("cde"), done}},
		"nothing":           {says: []*wire.Copy{done}, want: "brought nothing"},
		"dots":              {says: []*wire.Copy{folder, entry("..")}, want: "no name"},
		"slash":             {says: []*wire.Copy{folder, entry("../../etc/passwd")}, want: "no name"},
		"NUL":               {says: []*wire.Copy{folder, entry("a\x00b")}, want: "no name"},
		"no name":           {says: []*wire.Copy{folder, entry("")}, want: "no name"},
		"long name":         {says: []*wire.Copy{folder, entry(strings.Repeat("x", 256))}, want: "no name"},
		"entries of a file": {says: []*wire.Copy{entry("x"), entry("a")}, want: "more than was asked"},
		"too many":          {says: many, want: "more than was asked"},
		"too many, long":    {says: long, want: "more than was asked"},
		"long, not many":    {says: append(long[:wire.MaxLook+1:wire.MaxLook+1], done)},
		"content":           {says: []*wire.Copy{folder, data("x")}, want: "content"},
		"negative size":     {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Whole: -1})}, want: "impossible size"},
		"size of a folder":  {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_DIRECTORY, Whole: 1})}, want: "impossible size"},
		"announced":         {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Size: 1})}, want: "impossible size"},
		"setuid":            {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Mode: 0o4755})}, want: "mode bits"},
		"type":              {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Type: 99})}, want: "unknown type"},
		"target of a file":  {says: []*wire.Copy{folder, file(&wire.File{Name: "a", Type: wire.FileType_FILE_TYPE_REGULAR, Target: "/x"})}, want: "impossible target"},
		"empty frame":       {says: []*wire.Copy{{}}, want: "empty frame"},
		"no end":            {says: []*wire.Copy{folder, nil}, want: "without a word"},
		"long part":         {read: true, says: []*wire.Copy{part(2), data("abc")}, want: "longer than"},
		"short part":        {read: true, says: []*wire.Copy{part(2), data("a"), done}, want: "shorter than"},
		"empty data":        {read: true, says: []*wire.Copy{part(1), data("")}, want: "nothing in it"},
		"huge part":         {read: true, says: []*wire.Copy{part(1 << 62)}, want: "not what was asked"},
		"negative part":     {read: true, says: []*wire.Copy{part(-1)}, want: "not what was asked"},
		"two parts":         {read: true, says: []*wire.Copy{part(0), part(0)}, want: "not what was asked"},
		"data first":        {read: true, says: []*wire.Copy{data("x")}, want: "longer than"},
		"part of a folder":  {read: true, says: []*wire.Copy{folder}, want: "not what was asked"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startFake(t, &hostile{call: func(conn net.Conn, _ int) {
				wire.NewReader(conn).Read(new(wire.Call))
				for _, m := range c.says {
					if m == nil || say(conn, m) != nil {
						return
					}
				}
				conn.Read(make([]byte, 1)) // until the host has had enough
			}})
			f := keeperFiles{&Keeper{g: g, info: &api.Guest{Name: "g"}}}
			var err error
			if c.read {
				_, err = f.Read(t.Context(), connect.NewRequest(&api.ReadFileRequest{Path: "/x", MaxBytes: 10}))
			} else {
				_, err = f.List(t.Context(), connect.NewRequest(&api.ListFilesRequest{Path: "/x"}))
			}
			if c.want == "" {
				if err != nil || g.Cause() != "" {
					t.Fatal(err, g.Cause())
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if name == "no end" { // a connection may break: no rule is
				return
			}
			select {
			case <-g.Gone():
			case <-time.After(testPatience):
				t.Error("the guest lives on")
			}
		})
	}
}
