package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confinedDir tells a copy of this test which folder is left to it.
const confinedDir = "CARREL_TEST_CONFINED_DIR"

// tryConfined prints what works, before it confines itself as a keeper does and
// after.
func tryConfined(dir string) {
	tries := []try{
		{"read elsewhere", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
		{"write elsewhere", func() error { return os.WriteFile(filepath.Join(filepath.Dir(dir), "elsewhere"), nil, 0o600) }},
		{"exec", func() error { return exec.Command("/bin/true").Run() }},
		{"tcp", func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				l.Close()
			}
			return err
		}},
		{"unix socket", func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"own folder", func() error { return os.WriteFile(filepath.Join(dir, "own"), nil, 0o600) }},
	}
	tries = append(append(tries, unconfined(dir)...), confinable()...)
	run := func(when string) {
		for _, x := range tries {
			word := "works"
			if x.f() != nil {
				word = "denied"
			}
			fmt.Printf("%s %s: %s\n", when, x.name, word)
		}
	}
	run("before")
	if err := confineKeeper(dir); err != nil {
		fmt.Println("confine:", err)
		os.Exit(1)
	}
	run("after")
}

// A keeper with a running guest can do nothing but keep it.
func TestConfineKeeper(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "own")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{confinedDir + "=" + dir}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for _, n := range append([]string{"read elsewhere", "write elsewhere", "exec", "tcp", "unix socket"}, names(unconfined(dir))...) {
		if !strings.Contains(string(b), "before "+n+": works\n") || !strings.Contains(string(b), "after "+n+": denied\n") {
			t.Errorf("%s:\n%s", n, b)
		}
	}
	for _, n := range append(names(confinable()), "own folder") {
		if !strings.Contains(string(b), "after "+n+": works\n") {
			t.Errorf("control: %s:\n%s", n, b)
		}
	}
}
