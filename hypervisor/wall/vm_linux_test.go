package wall

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
)

// obeyed is a VM whose wall is the test, at the other end of its control stream.
func obeyed(t *testing.T) (*VM, *net.UnixConn) {
	t.Helper()
	ours, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	v := &VM{proc: new(exec.Cmd), control: ours, answers: make(chan Word, 1), gone: make(chan struct{})}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for {
			word, _, err := readWord(v.control)
			if err != nil {
				return
			}
			v.answered(*word)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		ours.Close()
		<-heard
	})
	return v, c.(*net.UnixConn)
}

// An answer that comes too late is that of its own command, and not of the next one.
func TestLateAnswer(t *testing.T) {
	v, wall := obeyed(t)
	say := func(w Word) {
		b, err := json.Marshal(w)
		if err == nil {
			_, err = wall.Write(b)
		}
		if err != nil {
			t.Error(err)
		}
	}
	read := func() byte {
		var b [16]byte
		if n, err := wall.Read(b[:]); err != nil || n != 1 {
			t.Errorf("%d bytes, %v", n, err)
		}
		return b[0]
	}
	for range 3 {
		ctx, giveUp := context.WithCancel(t.Context())
		obeys := make(chan struct{})
		go func() {
			defer close(obeys)
			a := read()
			giveUp()
			if b := read(); a != commandPause || b != commandResume {
				t.Errorf("%c, %c", a, b)
			}
			say(Word{Done: true, Op: "pause the guest", Err: "not every process stopped"})
			say(Word{Done: true})
		}()
		if err := v.Pause(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("no answer: %v", err)
		}
		if err := v.Resume(t.Context()); err != nil {
			t.Errorf("the command after it: %v", err)
		}
		<-obeys
	}
	// What nobody asked for is nobody's answer.
	v.answered(Word{Done: true, Op: "?", Err: "?"})
	v.answered(Word{Done: true, Op: "?", Err: "?"})
	obeys := make(chan struct{})
	go func() {
		defer close(obeys)
		read()
		say(Word{Done: true})
	}()
	if err := v.Pause(t.Context()); err != nil {
		t.Errorf("after answers without a question: %v", err)
	}
	<-obeys
}

// A wall that takes no commands any more, though its guest is not gone, is waited
// for as long as who asks has time.
func TestCommandToNobody(t *testing.T) {
	v, wall := obeyed(t)
	wall.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var he *hypervisor.Error
	if err := v.Resume(ctx); !errors.As(err, &he) {
		t.Errorf("a wall that is not there: %v", err)
	}
	close(v.gone) // the control
	if err := v.Resume(t.Context()); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("a guest that is gone: %v", err)
	}
}
