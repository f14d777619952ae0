package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confinedUnpackDir tells a copy of this test which folder is left to it.
const confinedUnpackDir = "CARREL_TEST_CONFINED_UNPACK_DIR"

// tryConfinedUnpack prints what works, before it confines itself as a process that unpacks layers does and after.
func tryConfinedUnpack(dir string) {
	open, err := os.Create(filepath.Join(filepath.Dir(dir), "open"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	tries := append([]try{
		{"read elsewhere", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
		{"write elsewhere", func() error { return os.WriteFile(filepath.Join(filepath.Dir(dir), "elsewhere"), nil, 0o600) }},
		{"write its folder", func() error { return os.WriteFile(filepath.Join(dir, "own"), nil, 0o600) }},
		{"rename in its folder", func() error {
			a, b := filepath.Join(dir, "blob"), filepath.Join(dir, "moved")
			if err := os.Rename(a, b); err != nil {
				return err
			}
			return os.Rename(b, a)
		}},
		{"exec", func() error { return exec.Command("/bin/true").Run() }},
		{"socket", func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"pair", func() error {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				unix.Close(p[0])
				unix.Close(p[1])
			}
			return err
		}},
	}, unconfined(dir)...)
	good := []try{
		{"read a blob", func() error { _, err := os.ReadFile(filepath.Join(dir, "blob")); return err }},
		{"write what is open", func() error { _, err := open.WriteAt([]byte("x"), 1<<20); return err }},
		{"a thread", func() error {
			done := make(chan struct{})
			go func() { close(done) }()
			<-done
			return nil
		}},
	}
	run := func(when string) {
		for _, x := range append(tries, good...) {
			word := "works"
			if x.f() != nil {
				word = "denied"
			}
			fmt.Printf("%s %s: %s\n", when, x.name, word)
		}
	}
	run("before")
	if err := confineUnpack(dir); err != nil {
		fmt.Println("confine:", err)
		os.Exit(1)
	}
	run("after")
}

// A process that unpacks layers reads blobs and writes what it was given, and can do nothing else.
func TestConfineUnpack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "own")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blob"), []byte("blob"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{confinedUnpackDir + "=" + dir}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for _, n := range append([]string{"read elsewhere", "write elsewhere", "write its folder", "rename in its folder", "exec", "socket", "pair"}, names(unconfined(dir))...) {
		if !strings.Contains(string(b), "before "+n+": works\n") || !strings.Contains(string(b), "after "+n+": denied\n") {
			t.Errorf("%s:\n%s", n, b)
		}
	}
	for _, n := range []string{"read a blob", "write what is open", "a thread"} {
		if !strings.Contains(string(b), "after "+n+": works\n") {
			t.Errorf("control: %s:\n%s", n, b)
		}
	}
}
