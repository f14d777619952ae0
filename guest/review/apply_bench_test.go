package review

import (
	"bytes"
	"fmt"
	"testing"
)

// BenchmarkApply applies 1,000 changed files of 1 KiB; each is compared, kept for
// undo and replaced. Folder and store are on the disk of the temporary folder.
func BenchmarkApply(b *testing.B) {
	files := map[string]string{}
	for n := range 1000 {
		files[fmt.Sprintf("folder%d/file%d", n/20, n)] = string(bytes.Repeat([]byte("a line of a file\n"), 60))
	}
	w := newDesk(b, files)
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		var changes []Entry
		for name := range files {
			changes = append(changes, Entry{Name: name, Kind: File, Target: fmt.Sprint(files[name], "one line more ", n)})
		}
		w.guest(changes...)
		b.StartTimer()
		if got := w.apply(ApplyOptions{}); len(got) != len(files) {
			b.Fatalf("%d were applied", len(got))
		}
	}
}
