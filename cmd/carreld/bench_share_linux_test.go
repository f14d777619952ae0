//go:build bench

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Sizes of what is measured.
const (
	bulkBytes   = 64 << 20
	createFiles = 1000
	treeFiles   = 10_000
	treeFolders = 100
)

// streams compares the carriers.
func (b *bench) streams(m *benchMachine) {
	c := m.dial(benchStream)
	for _, way := range []struct {
		word byte
		name string
	}{{'r', "to_guest"}, {'w', "from_guest"}} {
		vsock, serial := b.turns(b.n,
			func() float64 { return m.transfer(c, way.word, bulkBytes) },
			func() float64 { return m.transfer(m.serial, way.word, bulkBytes) })
		how := "64 MiB " + map[byte]string{'r': "host to guest", 'w': "guest to host"}[way.word] + ", in blocks of 64 KiB"
		b.median("vsock_"+way.name, "MiB/s", vsock, limit{}, how+", one stream of our vsock device")
		b.median("serial_"+way.name, "MiB/s", serial, limit{}, "the same, QEMU's virtio-serial in the same guest")
		b.ratio("vsock_over_serial_"+way.name, "serial_"+way.name, vsock, serial, least(1), "pairs of the two above")
	}
}

// shares compares our share server with virtiofsd: one guest has both, its
// caches are cold each time (a fresh mount, and its page, dentry and inode
// caches dropped), the host's are warm.
func (b *bench) shares(m *benchMachine) {
	for _, dir := range []string{m.ours, m.peers} {
		b.plantTree(filepath.Join(dir, "tree"))
	}
	sides := []struct{ tag, dir string }{{"share0", m.ours}, {"share1", m.peers}}
	for _, op := range []struct {
		word, name string
		n          int     // what the guest is asked for
		units      float64 // what speed counts
		unit       string
		goal       limit
		how        string
	}{
		{"write", "write", bulkBytes, bulkBytes >> 20, "MiB/s", least(0.9), "64 MiB to a new file, in blocks of 1 MiB"},
		{"read", "read", bulkBytes, bulkBytes >> 20, "MiB/s", least(0.9), "64 MiB of a file, in blocks of 1 MiB"},
		{"create", "create", createFiles, createFiles, "files/s", least(0.8), "1,000 files created, 12 bytes written to each"},
		{"stat", "stat", treeFiles, treeFiles, "files/s", least(0.8), "a walk over 100 folders of 100 files that looks at each, as `find -size` does"},
	} {
		speed := func(side int) func() float64 {
			s := sides[side]
			return func() float64 {
				b.clear(s.dir, op.word)
				m.do("mount", s.tag, 0)
				took := m.do(op.word, s.tag, op.n)
				m.do("umount", s.tag, 0)
				return op.units / took
			}
		}
		ours, peer := b.turns(b.n, speed(0), speed(1))
		b.median("share_"+op.name, op.unit, ours, limit{}, op.how+"; our server")
		b.median("virtiofsd_"+op.name, op.unit, peer, limit{}, "the same; virtiofsd (C), cache=auto")
		b.ratio("share_over_virtiofsd_"+op.name, "virtiofsd_"+op.name, ours, peer, op.goal, "pairs of the two above, in speed")
	}
}

// clear makes room for what an operation makes, and leaves the host's disk with
// nothing to do.
func (b *bench) clear(dir, word string) {
	switch word {
	case "write":
		if err := os.RemoveAll(filepath.Join(dir, "bulk")); err != nil {
			b.Fatal(err)
		}
	case "create":
		if err := os.RemoveAll(filepath.Join(dir, "new")); err != nil {
			b.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) plantTree(dir string) {
	for i := range treeFolders {
		folder := filepath.Join(dir, fmt.Sprintf("folder%d", i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range treeFiles / treeFolders {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("file%d.go", j)), []byte("package p\n"), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
}
