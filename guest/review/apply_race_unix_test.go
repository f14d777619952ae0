//go:build unix

package review

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestApplyRace: while changes are applied, another process puts links in the
// place of folders and of files. Nothing outside is reached, and what it puts
// there itself is not lost without being kept.
func TestApplyRace(t *testing.T) {
	length := 3 * time.Second
	if os.Getenv("CARREL_SCALE") == "full" {
		length = 60 * time.Second
	}
	w := newDesk(t, map[string]string{"d/sub/f0": "old", "d/keep": "x"})
	outside := filepath.Join(filepath.Dir(w.host), "outside")
	canary := filepath.Join(outside, "sub", "f0")
	if err := os.MkdirAll(filepath.Dir(canary), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(canary, []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := tree(t, outside)
	// The other process reaches nothing outside itself, whatever d/sub is then.
	theirs, err := os.OpenRoot(w.host)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	stop := make(chan struct{})
	var all sync.WaitGroup
	var swaps atomic.Int64
	all.Go(func() {
		in := func(n string) string { return filepath.Join(w.host, n) }
		for {
			select {
			case <-stop:
				return
			default:
			}
			switch swaps.Add(1) % 3 {
			case 0: // a folder on the way
				os.Rename(in("d"), in("moved"))
				os.Symlink(outside, in("d"))
				time.Sleep(50 * time.Microsecond)
				os.Remove(in("d"))
				os.Rename(in("moved"), in("d"))
			case 1: // the folder itself
				os.Rename(in("d/sub"), in("d/moved"))
				os.Symlink(filepath.Join(outside, "sub"), in("d/sub"))
				time.Sleep(50 * time.Microsecond)
				os.Remove(in("d/sub"))
				os.Rename(in("d/moved"), in("d/sub"))
			case 2: // the entry
				theirs.Remove("d/sub/f0")
				theirs.Symlink(canary, "d/sub/f0")
			}
		}
	})
	tries, done, said := 0, 0, ""
	// On a slow machine it lasts until there was a race.
	for begun := time.Now(); time.Since(begun) < length || (done == 0 || done == tries || swaps.Load() < 100) && time.Since(begun) < patience; {
		var entries []Entry
		for n := range 16 {
			entries = append(entries, Entry{Name: fmt.Sprint("d/sub/f", n), Kind: File, Target: fmt.Sprint("new ", tries), Mode: 0o666})
		}
		entries = append(entries, Entry{Name: "d/keep", Kind: Removed}, Entry{Name: "d/l", Kind: Link, Target: fmt.Sprint(tries)}, Entry{Name: "d/sub", Kind: Folder, Mode: 0o755 - uint32(tries%2)})
		w.guest(entries...)
		got, err := w.tryApply(ApplyOptions{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		tries += len(entries)
		for _, why := range got {
			if why == "" {
				done++
			}
			if strings.Contains(why, tmpPrefix) {
				said += why + "\n"
			}
		}
	}
	close(stop)
	all.Wait()
	if after := tree(t, outside); after != before {
		t.Errorf("outside it is\n%s\nand was\n%s", after, before)
	}
	// What the other process put into a folder that stood there for a moment is its
	// own, and it is said where that is.
	left := w.tree()
	for _, name := range regexp.MustCompile(regexp.QuoteMeta(tmpPrefix)+`[0-9a-f]+-[0-9a-f]+-[0-9]+`).FindAllString(left, -1) {
		if !strings.Contains(said, name) {
			t.Errorf("a temporary name, %s, is left:\n%s", name, left)
		}
	}
	t.Logf("%d tries against %d swaps, %d of them done, 0 outside", tries, swaps.Load(), done)
	if done == 0 || done == tries || swaps.Load() < 100 {
		t.Errorf("no race: of %d tries %d were done, in %d swaps", tries, done, swaps.Load())
	}
	if scale := os.Getenv("CARREL_SCALE"); scale == "full" && tries < 1000 {
		t.Errorf("only %d tries", tries)
	}
}
