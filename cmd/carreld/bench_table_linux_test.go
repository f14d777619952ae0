//go:build bench

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// The tables stand in the specification between these two lines. Each begins with
// a line of tableHead and what it was measured on.
const (
	tableBegin = "<!-- make bench writes from here -->\n"
	tableEnd   = "<!-- to here -->\n"
	tableHead  = "Measured "
)

// write puts what was measured into the file that CARREL_BENCH_DOC names, if any:
// a whole run in place of all that is there, parts in place of their own rows.
func (b *bench) write() {
	path := os.Getenv("CARREL_BENCH_DOC")
	if path == "" || b.Failed() {
		return
	}
	if b.n < 5 {
		b.Logf("%s is left as it is: only a run with 5 pairs of each comparison or more is written down", path)
		return
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(doc), tableBegin)
	before, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		b.Fatalf("%s has not the two lines between which the tables stand: %q and %q", path, tableBegin, tableEnd)
	}
	if len(b.parts) == 0 {
		before = ""
	}
	if err := os.WriteFile(path, []byte(head+tableBegin+b.without(before)+b.table()+tableEnd+tail), 0o644); err != nil {
		b.Fatal(err)
	}
}

// without leaves out of older tables the rows that this run has measured anew,
// and what then has no row left.
func (b *bench) without(tables string) string {
	var all strings.Builder
	for i, table := range strings.Split("\n"+tables, "\n"+tableHead) {
		rows := 0
		var kept strings.Builder
		for line := range strings.Lines(table) {
			name, isRow := strings.CutPrefix(line, "| `")
			if isRow {
				name, _, _ = strings.Cut(name, "`")
				if slices.ContainsFunc(b.all, func(f figure) bool { return f.Name == name }) {
					continue
				}
				rows++
			}
			kept.WriteString(line)
		}
		if i > 0 && rows > 0 {
			all.WriteString(tableHead + strings.TrimRight(kept.String(), "\n") + "\n\n")
		}
	}
	return all.String()
}

func (b *bench) table() string {
	var s strings.Builder
	what := "`make bench`"
	if len(b.parts) > 0 {
		what = "`CARREL_BENCH_PARTS=\"" + strings.Join(b.parts, " ") + "\" make bench`"
	}
	fmt.Fprintf(&s, tableHead+"%s by %s at commit %s.\n\n", time.Now().UTC().Format("2 January 2006, 15:04 UTC"), what, b.commit)
	fmt.Fprintf(&s, "- processor: %s, %d cores\n- host: Linux %s; %s; %s\n- load average (1, 5, 15 minutes) at the start: %s\n\n",
		b.about.cpu, b.about.cores, b.about.kernel, b.about.qemu, b.about.accel, b.about.load)
	if b.accel.Reason != "" {
		fmt.Fprintf(&s, "Why not KVM: %s.\n\n", strings.TrimSuffix(b.accel.Reason, "."))
	}
	s.WriteString(b.rows() + "\n")
	return s.String()
}
