//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// mask hides the needles from the search itself: no memory of this program and
// no file of the guest ever holds one as it is.
const mask = 0x5a

// scan looks for needles, one masked needle in hex a line, in every process's
// memory, environment and arguments, in the files and on the disks.
func scan(list string, memories bool) {
	b, err := os.ReadFile(list)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	var needles [][]byte
	for l := range strings.Lines(string(b)) {
		var n []byte
		if _, err := fmt.Sscanf(l, "%x", &n); err == nil && len(n) >= 8 {
			needles = append(needles, n)
		}
	}
	var looked int64
	found := 0
	see := func(where string, r io.Reader) {
		n, hits := search(r, needles)
		looked += n
		for _, h := range hits {
			found++
			fmt.Printf("FOUND needle %d in %s\n", h, where)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		for _, f := range []string{"environ", "cmdline"} {
			if r, err := os.Open(p + "/" + f); err == nil {
				see(p+"/"+f, r)
				r.Close()
			}
		}
		// What this program has read lies in its own memory, unmasked or not.
		if memories && p != fmt.Sprintf("/proc/%d", os.Getpid()) {
			memory(p, see)
		}
	}
	var disks []string
	if memories {
		disks, _ = filepath.Glob("/dev/vd*")
		disks = append(disks, "/dev/mem", "/proc/kcore")
	}
	for _, d := range disks {
		if r, err := os.Open(d); err == nil {
			see(d, io.LimitReader(r, 1<<30))
			r.Close()
		}
	}
	for _, top := range []string{"/run", "/tmp", "/home", "/root", "/etc", "/var", "/carrel", "/usr/local/share", "/dev/shm"} {
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "go-build" {
				return fs.SkipDir // the image's own, and large
			}
			if err == nil && d.Type().IsRegular() {
				if r, err := os.Open(path); err == nil {
					see(path, r)
					r.Close()
				}
			}
			return nil
		})
	}
	fmt.Printf("looked at %d MiB, found %d\n", looked>>20, found)
}

// memory reads what a process may write to, where secrets would lie.
func memory(p string, see func(string, io.Reader)) {
	maps, err := os.Open(p + "/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	mem, err := os.Open(p + "/mem")
	if err != nil {
		return
	}
	defer mem.Close()
	for s := bufio.NewScanner(maps); s.Scan(); {
		var from, to int64
		var perm string
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s", &from, &to, &perm); err != nil || !strings.HasPrefix(perm, "rw") {
			continue
		}
		see(p+"/mem "+s.Text(), resident(mem, from, min(to, from+256<<20)))
	}
}

// resident reads a range page by page and goes on behind what is not there.
func resident(mem *os.File, from, to int64) io.Reader {
	return &pages{mem: mem, at: from, end: to}
}

type pages struct {
	mem     *os.File
	at, end int64
}

func (p *pages) Read(b []byte) (int, error) {
	for p.at < p.end {
		n, err := p.mem.ReadAt(b[:min(int64(len(b)), p.end-p.at)], p.at)
		if n > 0 {
			p.at += int64(n)
			return n, nil
		}
		if err != nil {
			p.at += 4096
		}
	}
	return 0, io.EOF
}

// search says which needles r holds.
func search(r io.Reader, needles [][]byte) (n int64, hits []int) {
	hit := make([]bool, len(needles))
	longest := 0
	for _, x := range needles {
		longest = max(longest, len(x))
	}
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		m, err := r.Read(buf[kept:])
		n += int64(m)
		have := buf[:kept+m]
		for i := range have[kept:] {
			have[kept+i] ^= mask
		}
		for i, x := range needles {
			if !hit[i] && bytes.Contains(have, x) {
				hit[i] = true
				hits = append(hits, i)
			}
		}
		kept = copy(buf, have[max(0, len(have)-longest+1):])
		if err != nil || m == 0 {
			return n, hits
		}
	}
}
