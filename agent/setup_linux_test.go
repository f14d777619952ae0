package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

// TestSettle: what Setup gives to every task arrives, and tasks wait for it.
func TestSettle(t *testing.T) {
	release := make(chan struct{})
	var fail error
	settle := func(s *wire.Setup) ([]string, error) {
		<-release
		return []string{"A=settled", "B=settled", "C=settled"}, fail
	}
	refusals := filepath.Join(t.TempDir(), "refusals.log")
	h := hostWith(t, Options{Settle: settle, Refusals: refusals})
	if e := h.setUp(&wire.Setup{UnixNanos: 1, Env: []string{"B=setup", "C=setup"}}); e != "" {
		t.Fatal(e)
	}
	s := h.exec(&wire.Exec{Argv: []string{"/bin/sh", "-c", "echo $A $B $C"}, Env: []string{"C=call"}})
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	s.wait()
	s.wantOut("settled setup call\n")
	if a := h.control(&wire.Control{Id: 1, Kind: &wire.Control_Refused{Refused: &wire.Refused{Lines: []string{"no way"}}}}); a.Error != "" {
		t.Error(a.Error)
	}
	if b, err := os.ReadFile(refusals); string(b) != "no way\n" {
		t.Errorf("%q, %v", b, err)
	}
	fail = errors.New("a disk that is full")
	h = hostWith(t, Options{Settle: settle})
	if e := h.setUp(&wire.Setup{UnixNanos: 1}); e != "" {
		t.Fatal(e)
	}
	s = h.exec(&wire.Exec{Argv: []string{"/bin/true"}})
	s.wait()
	if s.failed == nil || !strings.Contains(s.failed.Message, fail.Error()) {
		t.Errorf("%v %v", s.exit, s.failed)
	}
	for _, env := range [][]string{{"noname"}, {"=x"}, {"A=\x00"}, make([]string, maxGuestEnv+1)} {
		if e := newHost(t).setUp(&wire.Setup{UnixNanos: 1, Env: env}); e == "" {
			t.Errorf("%.40q is taken", env)
		}
	}
}
