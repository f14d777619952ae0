package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/carrel-vm/carrel/guest/wire"
)

var etcFiles = fstest.MapFS{
	"passwd": {Data: []byte("root:x:0:0:root:/root:/bin/bash\nbroken line\nbad:x:abc:1::/:/bin/sh\n1001:x:5:5::/five:/bin/sh\ncarrel:x:1000:1000::/home/carrel:/bin/bash\nodd:x:7:7::relative:\nhuge:x:99999999999:1::/:/bin/sh\n")},
	"group":  {Data: []byte("root:x:0:\ncarrel:x:1000:carrel\ndocker:x:999:other,carrel\ntty:x:5:carrelx\n")},
}

func TestLookUp(t *testing.T) {
	for _, c := range []struct {
		who   string
		want  account
		fails bool
	}{
		{who: "", want: account{1000, 1000, []uint32{1000, 999}, "carrel", "/home/carrel", "/bin/bash"}},
		{who: "carrel", want: account{1000, 1000, []uint32{1000, 999}, "carrel", "/home/carrel", "/bin/bash"}},
		{who: "0", want: account{0, 0, []uint32{0}, "root", "/root", "/bin/bash"}},
		// A name wins over the same number, as in chown(1).
		{who: "1001", want: account{5, 5, []uint32{5}, "1001", "/five", "/bin/sh"}},
		{who: "odd", want: account{7, 7, []uint32{7}, "odd", "/", "/bin/sh"}},
		{who: "4242", want: account{4242, 4242, []uint32{4242}, "4242", "/", "/bin/sh"}},
		{who: "nobody-here", fails: true},
		{who: "bad", fails: true},
		{who: "huge", fails: true},
		{who: "4294967295", fails: true},
		{who: "-1", fails: true},
		// A group that is named is the only one.
		{who: "carrel:root", want: account{1000, 0, []uint32{0}, "carrel", "/home/carrel", "/bin/bash"}},
		{who: "1000:999", want: account{1000, 999, []uint32{999}, "carrel", "/home/carrel", "/bin/bash"}},
		{who: "carrel:", fails: true},
		{who: "carrel:nowhere", fails: true},
		{who: "carrel:4294967295", fails: true},
		{who: "nobody-here:root", fails: true},
	} {
		a, err := lookUp(etcFiles, c.who)
		if c.fails {
			if err == nil {
				t.Errorf("%q is %v", c.who, a)
			}
			continue
		}
		if err != nil || a.uid != c.want.uid || a.gid != c.want.gid || !slices.Equal(a.groups, c.want.groups) ||
			a.name != c.want.name || a.home != c.want.home || a.shell != c.want.shell {
			t.Errorf("%q is %+v, %v, want %+v", c.who, a, err, c.want)
		}
	}
	if a, err := lookUp(fstest.MapFS{}, "1000"); err != nil || a.uid != 1000 {
		t.Errorf("without passwd: %v, %v", a, err)
	}
}

// FuzzLookUp: whatever a guest's files hold, the answer is a user or an error.
func FuzzLookUp(f *testing.F) {
	f.Add(etcFiles["passwd"].Data, etcFiles["group"].Data, "carrel")
	f.Fuzz(func(t *testing.T, passwd, group []byte, who string) {
		a, err := lookUp(fstest.MapFS{"passwd": {Data: passwd}, "group": {Data: group}}, who)
		if err == nil && (!strings.HasPrefix(a.home, "/") || !strings.HasPrefix(a.shell, "/") || a.uid == 1<<32-1 && who == "4294967295" || len(a.groups) < 1 || len(a.groups) > 32) {
			t.Fatalf("%+v", a)
		}
	})
}

func TestEnvironment(t *testing.T) {
	a := &account{name: "u", home: "/h", shell: "/s"}
	got := environment([]string{"B=guest", "A=guest", "C=1", "C=2"}, []string{"HOME=/other", "A=1", "A=2"}, a, true)
	want := []string{"B=guest", "A=2", "C=2", "HOME=/other", "PATH=" + defaultPath, "USER=u", "SHELL=/s", "LANG=C.UTF-8", "TERM=xterm-256color"}
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"a/b", "../a", "a//b", "", "/", "a/./b", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkName(s) != nil {
			return
		}
		for part := range strings.SplitSeq(s, "/") {
			if part == "" || part == "." || part == ".." || strings.Contains(part, "\x00") {
				t.Fatalf("%q was taken", s)
			}
		}
	})
	if checkName("a/b.c/..d") != nil {
		f.Fatal("control: a good name was refused")
	}
}

func TestCheckExecBounds(t *testing.T) {
	good := func() *wire.Exec { return &wire.Exec{Argv: []string{"x"}, Id: "1"} }
	if err := checkExec(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*wire.Exec){
		"too many strings": func(e *wire.Exec) { e.Argv = make([]string, maxStrings+1) },
		"long id":          func(e *wire.Exec) { e.Id = strings.Repeat("a", maxID+1) },
		"no id":            func(e *wire.Exec) { e.Id = "" },
		"rows":             func(e *wire.Exec) { e.Rows = 1 << 16 },
	} {
		e := good()
		change(e)
		if checkExec(e) == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
