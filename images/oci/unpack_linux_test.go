package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childUnpack tells this program, started again by a test, how it is to unpack.
const childUnpack = "CARREL_TEST_UNPACK"

// TestUnpackChild is no test: it is the other process.
func TestUnpackChild(t *testing.T) {
	say := func(b []byte) { // not ServeUnpack's own file, which would be closed with this one
		if _, err := unix.Write(4, b); err != nil {
			os.Exit(4)
		}
	}
	how := os.Getenv(childUnpack)
	if how == "" {
		t.Skip("it is started by TestElsewhere")
	}
	given := func() Given {
		return Given{os.NewFile(3, "request"), os.NewFile(4, "answers"), os.NewFile(5, "root"), os.NewFile(6, "spool")}
	}
	switch how {
	case "lie":
		say([]byte(`{"Stats":{"ImageBytes":4096}}` + "\n"))
		os.Exit(0)
	case "nonsense":
		say([]byte("nonsense\n"))
		os.Exit(0)
	case "flood":
		for range 100 {
			say(bytes.Repeat([]byte("x"), 4096))
		}
		os.Exit(0)
	case "die":
		fmt.Fprintln(os.Stderr, "it hurts")
		os.Exit(3)
	case "outside":
		err := ServeUnpack(t.Context(), given(), Confinement{
			Enter:   func(string, []byte) error { return errors.New("there is no sandbox") },
			Confine: func(string) error { return nil },
		})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(0)
	case "refuse":
		err := ServeUnpack(t.Context(), given(), Confinement{Confine: func(string) error { return errors.New("it will not be confined") }})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(0)
	case "hang":
		select {}
	}
	if err := ServeUnpack(t.Context(), given(), Confinement{Confine: func(string) error { return nil }}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A root that another process writes is the same, its errors are told apart as ours are, and whatever it does
// instead is an error.
func TestElsewhere(t *testing.T) {
	here := Open(t.TempDir())
	elsewhere := func(how string) *Blobs {
		return here.Through(Elsewhere(Process{Command: func(ctx context.Context) *exec.Cmd {
			cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^TestUnpackChild$")
			cmd.Env = append(os.Environ(), childUnpack+"="+how)
			return cmd
		}}))
	}
	m := someImage(t)
	img, err := here.Fetch(t.Context(), Layout(layoutOf(t, m, ""), ""), amd64, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := func(b *Blobs, ctx context.Context) (Stats, []byte, error) {
		t.Helper()
		f, err := os.CreateTemp(t.TempDir(), "root")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := b.WriteRoot(ctx, img, f, Limits{}, nil)
		raw, rerr := os.ReadFile(f.Name())
		if rerr != nil {
			t.Fatal(rerr)
		}
		return st, raw, err
	}
	want, wantRoot, err := root(here, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, gotRoot, err := root(elsewhere("well"), t.Context())
	if err != nil || got != want || !bytes.Equal(gotRoot, wantRoot) {
		t.Fatalf("%+v, expected %+v; %v", got, want, err)
	}
	for how, want := range map[string]string{
		"lie": "what is not so", "nonsense": "its answer", "flood": "its answer", "die": `exit status 3: "it hurts`, "refuse": "it will not be confined", "outside": "there is no sandbox",
	} {
		if _, _, err := root(elsewhere(how), t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", how, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := root(elsewhere("hang"), ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	sum, _ := checkDigest(img.Layers[0].Digest)
	if err := os.WriteFile(here.path(sum), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, ours := root(here, t.Context())
	_, _, theirs := root(elsewhere("well"), t.Context())
	if !errors.Is(theirs, ErrDamaged) || theirs.Error() != ours.Error() {
		t.Errorf("a damaged layer: %v, expected %v", theirs, ours)
	}
	if err := os.Remove(here.path(sum)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := root(elsewhere("well"), t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("a layer that is gone: %v", err)
	}
}
