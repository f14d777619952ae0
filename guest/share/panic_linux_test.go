package share

import (
	"strings"
	"testing"
)

// panics is a backend with a fault of ours in it.
type panics struct{ backend }

func (panics) mkdir(string, uint32) (stat, error) { panic("planted") }

// P10: a panic ends the share it happens in: the request has no reply (a virtio device completes it with nothing), those that
// follow get EIO, locks are free, and another share goes on.
func TestPanicEndsOneShare(t *testing.T) {
	eachBackend(t, Options{}, func(t *testing.T, s *Server, root string) {
		other, err := OpenRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		o := New(other, plain(t, Options{}))
		defer o.Close()
		g, h := newGuest(t, s), newGuest(t, o)
		g.mkdir(rootID, "works")
		if s.Err() != nil {
			t.Fatal(s.Err())
		}
		s.back = panics{s.back}
		if _, e := g.call(opMkdir, rootID, uint64(0o755), "d"); e != -1 {
			t.Errorf("the request that panicked was answered: %v", e)
		}
		if err := s.Err(); err == nil || !strings.Contains(err.Error(), "planted") {
			t.Errorf("Err: %v", err)
		}
		g.refused("LOOKUP afterwards", opLookup, rootID, []any{"works"}, eIO)
		h.mkdir(rootID, "d")
		s.Reset() // takes every lock
	})
}
