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
