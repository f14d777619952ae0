package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/inherit"
)

// own is one of a guest's processes, started as the daemon starts it.
type own struct {
	request *os.File // is written, and closed
	said    *os.File // has its word
	link    *os.File // is the other end of that between keeper and egress process
}

// startOwn starts it. order has what it gets in the order in which it expects that. A
// dead daemon waits for no word of its.
func startOwn(t *testing.T, cmd *exec.Cmd, dead bool, order func(request, word, link *os.File) []inherit.Handed) own {
	t.Helper()
	request, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	said, word, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	theirs, kept, err := link.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if dead {
		said.Close()
	} else {
		t.Cleanup(func() { said.Close() })
	}
	err = inherit.Start(cmd, order(request, word, theirs)...)
	for _, f := range []*os.File{request, word, theirs} {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return own{ours, said, kept}
}

func egressGets(request, word, link *os.File) []inherit.Handed {
	return []inherit.Handed{request, link, word}
}

// word is what it says first.
func (o own) word() (string, error) {
	line, err := bufio.NewReader(o.said).ReadString('\n')
	return strings.TrimSpace(line), err
}
