package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// on reads on from a position, at most n records.
func on(t *testing.T, dir string, from Position, n int) (seqs []uint64, to Position, missed uint64) {
	t.Helper()
	to, missed, err := After(dir, from, func(e Entry) error {
		if len(seqs) == n {
			return ErrEnough
		}
		if e.Line != nil && (e.Kind == "" || e.Time.IsZero() || !bytes.Contains(e.Line, []byte(e.Kind))) {
			t.Errorf("%+v", e)
		}
		seqs = append(seqs, e.Seq)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seqs, to, missed
}

func numbers(from, to uint64) (out []uint64) {
	for ; from <= to; from++ {
		out = append(out, from)
	}
	return out
}

// Who reads on has every record once, in order: with the hint and without it,
// through rotations, and told of what was removed.
func TestAfter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	if seqs, to, _ := on(t, dir, Position{}, 9); seqs != nil || to != (Position{}) {
		t.Error("no log:", seqs, to)
	}
	l := open(t, dir)
	l.rotate, l.keep = 4<<10, 2
	var all []uint64
	at, bare := Position{}, Position{}
	for range 12 {
		add(t, l, 3)
		seqs, to, missed := on(t, dir, at, 2) // stops in the middle
		if missed != 0 || len(seqs) != 2 {
			t.Fatal(seqs, to, missed)
		}
		all = append(all, seqs...)
		seqs, at, _ = on(t, dir, to, 99)
		all = append(all, seqs...)
		seqs, to, _ = on(t, dir, bare, 99)
		bare = Position{Seq: to.Seq} // loses the hint
		if len(seqs) < 3 || to != at {
			t.Fatal(seqs, to, at)
		}
	}
	if !slices.Equal(all, numbers(1, all[len(all)-1])) || len(all) < 36 {
		t.Fatal(all)
	}
	if seqs, to, missed := on(t, dir, at, 99); seqs != nil || to != at || missed != 0 {
		t.Error("at the end:", seqs, to, missed)
	}
	// Away for long: the oldest files are gone, and that is told.
	far := at.Seq
	add(t, l, 200)
	seqs, to, missed := on(t, dir, at, 9999)
	if missed == 0 || seqs[0] != far+missed+1 || seqs[len(seqs)-1] != to.Seq || !slices.Equal(seqs, numbers(seqs[0], to.Seq)) {
		t.Error(missed, seqs[0], to)
	}
}

// A hint that is wrong, a damaged line and another log under the same name are
// no reason to leave anything out.
func TestAfterOdd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	add(t, l, 6)
	for _, offset := range []int64{1, 7, 1 << 40, -5} {
		if seqs, _, _ := on(t, dir, Position{Seq: 4, Offset: offset}, 9); !slices.Equal(seqs, numbers(5, 6)) {
			t.Error(offset, seqs)
		}
	}
	path := filepath.Join(dir, current)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	lines[3] = []byte("{\"seq\":9}\n")
	if err := os.WriteFile(path, append(bytes.Join(lines, nil), `{"seq":7,"half`...), 0o600); err != nil {
		t.Fatal(err)
	}
	seqs, to, _ := on(t, dir, Position{Seq: 2}, 9)
	if !slices.Equal(seqs, []uint64{3, 0, 5, 6}) {
		t.Error("damaged:", seqs)
	}
	if seqs, _, _ = on(t, dir, to, 9); seqs != nil {
		t.Error("a half line was told:", seqs)
	}
	// Moved away, and begun anew.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l2 := open(t, dir)
	add(t, l2, 2)
	if seqs, _, _ = on(t, dir, to, 9); !slices.Equal(seqs, numbers(1, 2)) {
		t.Error("another log:", seqs)
	}
}

// A line with a number that is made up, huge or small, is told as one that cannot
// be read; what follows it is told, and nothing is told again. The control is the
// same log without it.
func TestAfterForged(t *testing.T) {
	for name, forged := range map[string][]uint64{"control": nil, "huge": {1 << 63}, "far and back": {1 << 20, 2}, "huge and back": {1<<64 - 1, 1}, "again": {3, 3}} {
		dir := filepath.Join(t.TempDir(), "audit")
		l := open(t, dir)
		l.rotate = 4 << 10
		add(t, l, 5)
		seqs, at, _ := on(t, dir, Position{}, 3)
		path := filepath.Join(dir, current)
		for _, n := range forged {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(append(compose(n, l.now(), "egress", nothing, []byte("{}")), '\n')); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		add(t, l, 4) // whoever goes on counts from there
		var lost uint64
		for { // by pages
			more, to, missed := on(t, dir, at, 2)
			lost += missed
			if len(more) == 0 {
				if to != at {
					t.Error(name, to, at)
				}
				break
			}
			seqs, at = append(seqs, more...), to
			if len(seqs) > 99 {
				break
			}
		}
		if len(seqs) != 9+len(forged) || !slices.Equal(seqs[:5], numbers(1, 5)) || lost > 1<<21 {
			t.Errorf("%s: %v, %d lost", name, seqs, lost)
		}
		if n := slices.Index(seqs, 0); (n >= 0) != (forged != nil) {
			t.Errorf("%s: told as read: %v", name, seqs)
		}
		add(t, l, 60) // into other files
		more, to, _ := on(t, dir, at, 999)
		if len(more) < 60 || slices.Contains(more, 0) {
			t.Error(name, more)
		}
		if more, _, _ = on(t, dir, to, 999); more != nil {
			t.Error(name, "again:", more)
		}
	}
}

// A file that is full already is read on from where it was left, and not from its
// beginning: what stands there by then is of no interest.
func TestAfterResumes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	l.rotate = 4 << 10
	add(t, l, 60)
	_, at, _ := on(t, dir, Position{}, 4)
	path := filepath.Join(dir, "audit.1.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	if len(lines[1]) != len(lines[6]) {
		t.Fatal("the lines are not of one length")
	}
	lines[1] = lines[6]
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	seqs, to, missed := on(t, dir, at, 99)
	if !slices.Equal(seqs, numbers(5, to.Seq)) || len(seqs) < 56 || missed != 0 {
		t.Error(seqs, to, missed)
	}
	// A log whose end is gone, or was changed where it was read last: that is told
	// once, and then what comes.
	for _, change := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] },
		func(b []byte) []byte { b[len(b)-5] ^= 1; return b },
	} {
		add(t, l, 2)
		_, to, _ = on(t, dir, to, 99)
		path := filepath.Join(dir, current)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if seqs, to, _ = on(t, dir, to, 99); !slices.Equal(seqs, []uint64{0}) {
			t.Error("changed:", seqs)
		}
		if seqs, to, _ = on(t, dir, to, 99); seqs != nil {
			t.Error("again:", seqs)
		}
	}
}
