package review

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/wire"
)

const aheadFiles = 3*wantBatches*wantBatch + 5

// aheadScene has more files than are asked for at once.
func aheadScene(t *testing.T) *scene {
	w := newScene(t, nil)
	for i := range aheadFiles {
		w.file(fmt.Sprintf("f%03d", i), fmt.Sprintf("content %d", i))
	}
	return w
}

// TestImportAhead: the guest is asked for contents before it has sent the last
// ones, and for a bounded number.
func TestImportAhead(t *testing.T) {
	w := aheadScene(t)
	var most atomic.Int64
	w.play = func(conn net.Conn) error {
		var open atomic.Int64
		wants := make(chan uint32, aheadFiles)
		go func() {
			defer close(wants)
			for in := wire.NewReader(conn); ; {
				var m wire.Reviewing
				if in.Read(&m) != nil {
					return
				}
				most.Store(max(most.Load(), open.Add(1)))
				wants <- m.GetWant().Index
			}
		}()
		// An answer before the host has asked for a second batch would show
		// nothing.
		var held []uint32
		for len(held) <= wantBatch {
			held = append(held, <-wants)
		}
		send := func(index uint32) error {
			open.Add(-1)
			return w.content(conn, w.list[index].Name, 1)
		}
		for _, index := range held {
			if err := send(index); err != nil {
				return err
			}
		}
		for index := range wants {
			if err := send(index); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	counts, err := w.tryImport(ctx, w.options())
	if err != nil || counts.Changes != aheadFiles || counts.Incomplete != "" {
		t.Fatalf("%+v, %v", counts, err)
	}
	for name, content := range w.contents {
		w.wantContent(name, content)
	}
	if n := most.Load(); n <= wantBatch || n > wantBatches*wantBatch {
		t.Errorf("%d contents were asked for at once, not more than %d and up to %d", n, wantBatch, wantBatches*wantBatch)
	}
}

// TestImportAheadHostile: whatever a guest makes of being asked for several
// contents, the import ends, what is kept has the size that was listed, and of
// the rest it is said that it is missing.
func TestImportAheadHostile(t *testing.T) {
	// each answers the wants in their order; answer says what to send for the nth.
	each := func(w *scene, answer func(conn net.Conn, n int, name string) error) func(net.Conn) error {
		return func(conn net.Conn) error {
			in := wire.NewReader(conn)
			for n := 0; ; n++ {
				var m wire.Reviewing
				if err := in.Read(&m); err != nil {
					return err
				}
				if err := answer(conn, n, w.list[m.GetWant().Index].Name); err != nil {
					return err
				}
			}
		}
	}
	send := func(conn net.Conn, parts ...*wire.Reviewed) error {
		for _, p := range parts {
			if err := wire.Write(conn, p); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct {
		what string
		// whole is how many contents are right at least, note what is said of
		// the others.
		whole      int
		note       string
		incomplete bool
		play       func(w *scene) func(net.Conn) error
	}{
		{what: "control", whole: aheadFiles, play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error { return w.content(conn, name, 1) })
		}},
		{what: "more frames than were asked for", whole: 40, note: "written to", play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error {
				if err := w.content(conn, name, 1); err != nil || n != 40 {
					return err
				}
				return send(conn, dataFrame([]byte("more")), doneFrame(""))
			})
		}},
		{what: "fewer, and then the end", whole: 40, note: "did not send", incomplete: true, play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error {
				if n == 40 {
					return errEnough
				}
				return w.content(conn, name, 1)
			})
		}},
		{what: "half a content, and then the end", whole: 40, note: "did not send", incomplete: true, play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error {
				if n == 40 {
					send(conn, dataFrame([]byte("con")))
					return errEnough
				}
				return w.content(conn, name, 1)
			})
		}},
		{what: "another order", whole: aheadFiles - wantBatches*wantBatch, play: func(w *scene) func(net.Conn) error {
			return func(conn net.Conn) error {
				in := wire.NewReader(conn)
				// The first that are asked for at once the other way round.
				names, first := []string(nil), true
				for {
					var m wire.Reviewing
					if err := in.Read(&m); err != nil {
						return err
					}
					names = append(names, w.list[m.GetWant().Index].Name)
					if first && len(names) < wantBatches*wantBatch {
						continue
					}
					for _, name := range slices.Backward(names) {
						if err := w.content(conn, name, 1); err != nil {
							return err
						}
					}
					names, first = nil, false
				}
			}
		}},
		{what: "sizes that lie", whole: aheadFiles - 2, note: "written to", play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error {
				switch name {
				case "f010":
					return send(conn, dataFrame([]byte("short")), doneFrame(""))
				case "f020":
					return send(conn, dataFrame([]byte(strings.Repeat("long", 1000))), doneFrame(""))
				}
				return w.content(conn, name, 1)
			})
		}},
		{what: "a failure of each", whole: 0, note: "no", play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error { return send(conn, doneFrame("no")) })
		}},
		{what: "stalls in the middle", whole: 40, note: "did not send", incomplete: true, play: func(w *scene) func(net.Conn) error {
			return each(w, func(conn net.Conn, n int, name string) error {
				if n == 40 {
					send(conn, dataFrame([]byte("con")))
					w.stop()
					buf := make([]byte, 1<<10)
					for {
						if _, err := conn.Read(buf); err != nil {
							return err
						}
					}
				}
				return w.content(conn, name, 1)
			})
		}},
		{what: "does not read", whole: 0, note: "did not send", incomplete: true, play: func(w *scene) func(net.Conn) error {
			return func(conn net.Conn) error {
				// Nobody could ask for these: the pipe takes no byte of the wants.
				for i := range aheadFiles - 1 {
					conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
					if err := w.content(conn, w.list[i].Name, 1); err != nil {
						w.stop()
						return err
					}
				}
				return nil
			}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := aheadScene(t)
			w.play = c.play(w)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			w.stop = cancel
			counts, err := w.tryImport(ctx, w.options())
			if err != nil {
				t.Fatal(err)
			}
			if (counts.Incomplete != "") != c.incomplete {
				t.Errorf("incomplete: %q", counts.Incomplete)
			}
			whole := 0
			for _, e := range w.s.Entries() {
				if e.Blob == "" {
					if !strings.Contains(e.Note, c.note) {
						t.Errorf("%s has no content and the note %q, not %q", e.Name, e.Note, c.note)
					}
					continue
				}
				var b taken
				if n, err := w.s.CopyBlob(&b, e.Blob); err != nil || n != e.Size {
					t.Errorf("%s has a content of %d bytes, not %d: %v", e.Name, n, e.Size, err)
				}
				if string(b) == w.contents[e.Name] {
					whole++
				}
			}
			if whole < c.whole || (whole == aheadFiles) != (c.whole == aheadFiles) {
				t.Errorf("%d of %d contents are right, not %d", whole, aheadFiles, c.whole)
			}
			if tmp, _ := os.ReadDir(filepath.Join(w.store, tmpDir)); len(tmp) != 0 {
				t.Errorf("%d files are left half written", len(tmp))
			}
		})
	}
}
