package control

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
)

// process is a share process that the test plays, and its keeper's end.
func process(t *testing.T) (*Conn, *os.File) {
	t.Helper()
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); ours.Close() })
	return c, ours
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // only a test that fails waits for it
	t.Cleanup(cancel)
	return ctx
}

// A spec with the longest lists arrives as it was.
func TestTell(t *testing.T) {
	want := Spec{Tag: "share0", Path: "/p", Dev: 1, Ino: ^uint64(0), Store: "/s", Owner: 1000, Rules: rules.Options{Mode: rules.NoDelete}}
	for range rules.MaxPatterns {
		want.Rules.Hide = append(want.Rules.Hide, rules.List{Pattern: strings.Repeat("x", 1024), Origin: "policy.yaml:7"})
	}
	p, ours := process(t)
	keeper, err := New(ours)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() { told <- keeper.Tell(within(t), want) }()
	got, err := p.Told()
	if err != nil || len(got.Rules.Hide) != rules.MaxPatterns || got.Ino != want.Ino || got.Store != "/s" || got.Rules.Mode != rules.NoDelete {
		t.Fatalf("%v, %d patterns", err, len(got.Rules.Hide))
	}
	p.Send(&Message{Kind: Ready, Error: "the folder was replaced"}, nil)
	if err := <-told; err == nil || err.Error() != "the folder was replaced" {
		t.Errorf("%v", err)
	}
	// One that does not answer, and one that is gone.
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("late"))
	defer cancel()
	if err := keeper.Tell(ctx, Spec{}); err == nil || err.Error() != "late" {
		t.Errorf("%v", err)
	}
	if _, err := p.Told(); err != nil {
		t.Error(err)
	}
	p.Close()
	if err := keeper.Tell(within(t), Spec{}); err == nil {
		t.Error("told a process that is gone")
	}
}

// Answers find who asked; a process that ends answers everybody.
func TestClient(t *testing.T) {
	p, ours := process(t)
	changed := make(chan struct{}, 16)
	keeper, err := New(ours)
	if err != nil {
		t.Fatal(err)
	}
	k := NewClient(keeper, func() { changed <- struct{}{} })
	answers := make(chan error, 2)
	go func() { answers <- k.Session(within(t), "01A") }()
	m, f, err := p.Receive()
	if err != nil || m.Kind != Session || m.Task != "01A" || f != nil {
		t.Fatal(m, err)
	}
	p.Send(&Message{Kind: Done, ID: m.ID + 7}, nil) // nobody's
	p.Send(&Message{Kind: Done, ID: m.ID, Error: "the disk is full"}, nil)
	if err := <-answers; err == nil || err.Error() != "the disk is full" {
		t.Error(err)
	}
	a, b, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if err := k.Carry(Stream, b); err != nil || !k.Carrying() {
		t.Fatal(err)
	}
	if m, f, err = p.Receive(); err != nil || m.Kind != Stream || f == nil {
		t.Fatal(m, err)
	}
	f.Close()
	if err := k.Carry(Stream, b); err == nil {
		t.Error("a second carrier beside the first")
	}
	p.Send(&Message{Kind: Ended, Error: "the guest let go of it"}, nil)
	<-changed
	if k.Carrying() || k.Cause() != "the guest let go of it" {
		t.Errorf("%v, %q", k.Carrying(), k.Cause())
	}
	go func() { answers <- k.Review(within(t), "", false, b) }()
	if _, f, err = p.Receive(); err != nil || f == nil {
		t.Fatal(err)
	}
	f.Close()
	p.Close()
	if err := <-answers; err == nil {
		t.Error("a process that is gone has answered")
	}
	<-k.Gone()
	if err := k.Shut(within(t)); err != nil {
		t.Errorf("a process that is gone holds nothing: %v", err)
	}
	if err := k.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// What a share process was made to say that is no answer ends its service.
func TestClientRefuses(t *testing.T) {
	for _, m := range []*Message{{Kind: Close, ID: 1}, {Kind: Session, ID: 1}, {Kind: Ready}} {
		p, ours := process(t)
		keeper, err := New(ours)
		if err != nil {
			t.Fatal(err)
		}
		k := NewClient(keeper, nil)
		if err := p.Send(m, nil); err != nil {
			t.Fatal(err)
		}
		<-k.Gone()
		if _, _, err := p.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", m.Kind, err)
		}
	}
}

// What is no message of ours is refused, and no file of it stays open.
func TestReceiveRefuses(t *testing.T) {
	p, raw := process(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	count := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	before := count()
	for _, x := range []struct {
		text string
		fds  []int
	}{
		{text: "no"}, {text: `{"kind":"stream"}`}, {text: `{"kind":"none"}`}, {text: `{"kind":"done","task":"x"}`}, {text: `{"kind":"task","task":"../x"}`},
		{text: `{"kind":"done","id":1}{}`}, {text: `{"kind":"done","extra":1}`},
		{`{"kind":"close"}`, []int{int(file.Fd())}}, {`{"kind":"stream"}`, []int{int(file.Fd()), int(file.Fd())}},
	} {
		var oob []byte
		if x.fds != nil {
			oob = unix.UnixRights(x.fds...)
		}
		if err := unix.Sendmsg(int(raw.Fd()), []byte(x.text), oob, nil, 0); err != nil {
			t.Fatal(err)
		}
		if m, f, err := p.Receive(); !errors.Is(err, ErrMessage) || f != nil {
			t.Errorf("%s: %v, %v", x.text, m, err)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d files were open, and %d are", before, after)
	}
	if err := unix.Sendmsg(int(raw.Fd()), []byte(`{"kind":"stream"}`), unix.UnixRights(int(file.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	m, f, err := p.Receive()
	if err != nil || m.Kind != Stream || f == nil {
		t.Fatalf("control: %v, %v", m, err)
	}
	f.Close()
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"done","id":1,"error":"x"}`), false)
	f.Add([]byte(`{"kind":"stream"}`), true)
	f.Fuzz(func(t *testing.T, b []byte, file bool) {
		m, err := decode(b, file)
		if err == nil && m.check() != nil {
			t.Errorf("%q", b)
		}
	})
}
