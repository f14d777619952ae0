package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted mounts an image that this test has made, read-only, and returns where.
func mounted(t testing.TB, image string) string {
	t.Helper()
	return mountedWith(t, image, "loop,ro,nodev,nosuid,noexec")
}

func mountedWith(t testing.TB, image, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount; fsck.erofs has read the image")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", options, image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// tell lists a tree as lines: type and mode, owner, links, size or device, name, and contents or target.
func tell(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%06o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Nlink)
		if st.Rdev != 0 {
			line += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		line += " ." + strings.TrimPrefix(path, dir)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if int64(len(b)) != st.Size {
				return fmt.Errorf("%s: %d bytes, stat says %d", path, len(b), st.Size)
			}
			if len(b) > 40 {
				line += " " + digestOf(b)[:15]
			} else {
				line += " = " + string(b)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + clip(target)
		}
		all = append(all, strings.TrimRight(line, " "))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func same(t testing.TB, got []string, want string) {
	t.Helper()
	w := strings.Split(strings.TrimSpace(want), "\n")
	for i := range w {
		w[i] = strings.TrimSpace(w[i])
	}
	if !slices.Equal(got, w) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(w, "\n  "))
	}
}

func mustMount(t testing.TB, m *made) string {
	t.Helper()
	path, _, err := rootOf(t, m, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return mounted(t, path)
}

// TestRoot is the positive control of every refusal below: one of each kind of file comes out as it went in.
func TestRoot(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1000) // 16,000 bytes: three blocks and a part
	whole := strings.Repeat("w", 8192)
	odd := strings.Repeat("o", 4000) // too long to follow an inode
	m := imageOf(t, "", gzipped, layerOf(t,
		e{name: "./", mode: 0o711, uid: 7, gid: 8},
		e{name: "etc/", mode: 0o1777},
		e{name: "etc/passwd", body: "root:x:0:0", uid: 4294967294, gid: 100000},
		e{name: "bin/su", body: "setuid", mode: 0o4755},
		e{name: "bin/wall", body: "setgid", mode: 0o2755, gid: 5},
		e{name: "big", body: big}, e{name: "whole", body: whole}, e{name: "odd", body: odd}, e{name: "empty"},
		e{name: "null", kind: tar.TypeChar, major: 1, minor: 3, mode: 0o666},
		e{name: "disk", kind: tar.TypeBlock, major: 259, minor: 70000},
		e{name: "pipe", kind: tar.TypeFifo},
		e{name: "link", kind: tar.TypeSymlink, link: "/etc/passwd"},
		e{name: "hard", kind: tar.TypeLink, link: "etc/passwd"},
		e{name: "hardlink-to-link", kind: tar.TypeLink, link: "link"},
		e{name: "File", body: "upper"}, e{name: "file", body: "lower"}, e{name: "FILE", body: "loud"},
		e{name: `a\x2db`, body: "backslash"}, e{name: "C:", body: "drive"}, e{name: "con", body: "device"}, e{name: "aux.", body: "dot "},
		e{name: "caf\u00e9", body: "composed"}, e{name: "cafe\u0301", body: "decomposed"},
		e{name: "time", at: dir2000.Add(123456789)},
	))
	dir := mustMount(t, m)
	same(t, tell(t, dir), `
		040711 7:8 4 .
		100644 0:0 1 ./C: = drive
		100644 0:0 1 ./FILE = loud
		100644 0:0 1 ./File = upper
		100644 0:0 1 ./a\x2db = backslash
		100644 0:0 1 ./aux. = dot 
		100644 0:0 1 ./big `+digestOf([]byte(big))[:15]+`
		040755 0:0 2 ./bin
		104755 0:0 1 ./bin/su = setuid
		102755 0:5 1 ./bin/wall = setgid
		100644 0:0 1 ./cafe`+"\u0301"+` = decomposed
		100644 0:0 1 ./caf`+"\u00e9"+` = composed
		100644 0:0 1 ./con = device
		060644 0:0 1 dev 259:70000 ./disk
		100644 0:0 1 ./empty =
		041777 0:0 2 ./etc
		100644 4294967294:100000 2 ./etc/passwd = root:x:0:0
		100644 0:0 1 ./file = lower
		100644 4294967294:100000 2 ./hard = root:x:0:0
		120777 0:0 2 ./hardlink-to-link -> /etc/passwd
		120777 0:0 2 ./link -> /etc/passwd
		020666 0:0 1 dev 1:3 ./null
		100644 0:0 1 ./odd `+digestOf([]byte(odd))[:15]+`
		010644 0:0 1 ./pipe
		100644 0:0 1 ./time =
		100644 0:0 1 ./whole `+digestOf([]byte(whole))[:15])
	fi, err := os.Stat(filepath.Join(dir, "time"))
	if err != nil || !fi.ModTime().Equal(dir2000.Add(123456789)) {
		t.Errorf("mtime %v, %v", fi.ModTime(), err)
	}
	a, _ := os.Stat(filepath.Join(dir, "hard"))
	b, _ := os.Stat(filepath.Join(dir, "etc/passwd"))
	if !os.SameFile(a, b) {
		t.Error("a hard link is another file")
	}
}

// TestWhiteouts applies what image-spec's layer.md says of layers upon layers.
func TestWhiteouts(t *testing.T) {
	base := layerOf(t,
		e{name: "a/one", body: "1"}, e{name: "a/two", body: "2"}, e{name: "a/deep/er", body: "3"},
		e{name: "b/old", body: "old"}, e{name: "b/sub/old", body: "old"},
		e{name: "c", body: "file"}, e{name: "d/", mode: 0o700}, e{name: "d/in", body: "in"},
		e{name: "usr/lib/libc", body: "c"}, e{name: "lib", kind: tar.TypeSymlink, link: "usr/lib"},
		e{name: "h1", body: "hard"}, e{name: "h2", kind: tar.TypeLink, link: "h1"},
		e{name: "x", kind: tar.TypeSymlink, link: "c"},
	)
	for name, c := range map[string]struct {
		layers [][]byte
		want   string
	}{
		"nothing": {nil, ""},
		"one name": {[][]byte{layerOf(t, e{name: "a/.wh.one"}, e{name: ".wh.h1"}, e{name: ".wh.never"}, e{name: "no/where/.wh.x"})}, `
			-./a/one -./h1 100644 0:0 1 ./h2 = hard`},
		"a directory": {[][]byte{layerOf(t, e{name: ".wh.a"})}, `-./a -./a/one -./a/two -./a/deep -./a/deep/er`},
		"opaque, and what its layer has there stays, before and behind": {[][]byte{layerOf(t,
			e{name: "b/"}, e{name: "b/before", body: "n"}, e{name: "b/.wh..wh..opq"}, e{name: "b/behind", body: "n"}, e{name: "b/sub/new", body: "n"})}, `
			-./b/old -./b/sub/old 100644 0:0 1 ./b/before = n 100644 0:0 1 ./b/behind = n 100644 0:0 1 ./b/sub/new = n`},
		"gone, and back in a later layer": {[][]byte{layerOf(t, e{name: ".wh.a"}), layerOf(t, e{name: "a/two", body: "again"})}, `
			-./a/one -./a/deep -./a/deep/er 100644 0:0 1 ./a/two = again`},
		"a file for a directory, a directory for a file, attributes": {[][]byte{layerOf(t,
			e{name: "a", body: "file"}, e{name: "c/", mode: 0o750}, e{name: "d/", mode: 0o711, uid: 3})}, `
			-./a/one -./a/two -./a/deep -./a/deep/er 100644 0:0 1 ./a = file 040750 0:0 2 ./c 040711 3:0 2 ./d`},
		"a link is replaced, not written through": {[][]byte{layerOf(t, e{name: "x", body: "mine"})}, `100644 0:0 1 ./x = mine`},
		"a link on the way leads inside":          {[][]byte{layerOf(t, e{name: "lib/new", body: "n"})}, `100644 0:0 1 ./usr/lib/new = n`},
		"aufs's own":                              {[][]byte{layerOf(t, e{name: ".wh..wh.plnk/"}, e{name: ".wh..wh.aufs", body: "x"})}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[string]string{}
			for _, line := range strings.Split(`040755 0:0 5 .
040755 0:0 3 ./a
040755 0:0 2 ./a/deep
100644 0:0 1 ./a/deep/er = 3
100644 0:0 1 ./a/one = 1
100644 0:0 1 ./a/two = 2
040755 0:0 3 ./b
100644 0:0 1 ./b/old = old
040755 0:0 2 ./b/sub
100644 0:0 1 ./b/sub/old = old
100644 0:0 1 ./c = file
040700 0:0 2 ./d
100644 0:0 1 ./d/in = in
100644 0:0 2 ./h1 = hard
100644 0:0 2 ./h2 = hard
120777 0:0 1 ./lib -> usr/lib
040755 0:0 3 ./usr
040755 0:0 2 ./usr/lib
100644 0:0 1 ./usr/lib/libc = c
120777 0:0 1 ./x -> c`, "\n") {
				want[strings.Fields(line)[3]] = line
			}
			fields := strings.Fields(c.want)
			for i := 0; i < len(fields); {
				if gone, ok := strings.CutPrefix(fields[i], "-"); ok {
					delete(want, gone)
					i++
					continue
				}
				j := i + 4
				if j < len(fields) && fields[j] == "=" {
					j += 2
				}
				want[fields[i+3]] = strings.Join(fields[i:j], " ")
				i = j
			}
			dir := mustMount(t, imageOf(t, "", nil, append([][]byte{base}, c.layers...)...))
			for _, line := range tell(t, dir) {
				name := strings.Fields(line)[3]
				if w := want[name]; w != line && !strings.HasPrefix(line, "04") || w == "" {
					t.Errorf("got %q, want %q", line, w)
				} else if strings.HasPrefix(line, "04") && (w[:6] != line[:6] || strings.Fields(w)[1] != strings.Fields(line)[1]) {
					t.Errorf("got %q, want %q", line, w) // links of directories vary
				}
				delete(want, name)
			}
			for _, w := range want {
				t.Errorf("missing: %q", w)
			}
		})
	}
}

// TestXattrs keeps what Linux knows inside the image, and nothing reaches the host's disk but as bytes of the image.
func TestXattrs(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	long := strings.Repeat("v", 5000)
	m := imageOf(t, "", nil, layerOf(t,
		e{name: "ping", body: "ping", mode: 0o755, xattrs: map[string]string{"security.capability": capability, "user.a": "b", "com.apple.provenance": "mac", "trusted.overlay.redirect": "/etc"}},
		e{name: "long", body: "tail", xattrs: map[string]string{"user.long": long, "user.empty": ""}},
		e{name: "dir/", xattrs: map[string]string{"user.on": "dir", "trusted.t": "x"}},
	))
	dir := mustMount(t, m)
	for file, want := range map[string]map[string]string{
		"ping": {"security.capability": capability, "user.a": "b"},
		"long": {"user.long": long, "user.empty": ""},
		"dir":  {"user.on": "dir", "trusted.t": "x"},
	} {
		path := filepath.Join(dir, file)
		buf := make([]byte, 8192)
		n, err := unix.Llistxattr(path, buf)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
		if len(names) != len(want) {
			t.Errorf("%s has %q", file, names)
		}
		for k, v := range want {
			n, err := unix.Lgetxattr(path, k, buf)
			if err != nil || string(buf[:n]) != v {
				t.Errorf("%s: %s = %q, %v", file, k, buf[:max(n, 0)], err)
			}
		}
	}
}

// TestManyNames fills directories of many blocks, at every length that could make an off-by-one.
func TestManyNames(t *testing.T) {
	var entries []e
	want := map[string]string{}
	for i := range 1500 {
		name := fmt.Sprintf("d/%s%d", strings.Repeat("n", i*7%240), i)
		entries = append(entries, e{name: name, body: strings.Repeat("x", i*3)})
		want[name] = strings.Repeat("x", i*3)
	}
	dir := mustMount(t, imageOf(t, "", zstded, layerOf(t, entries...)))
	list, err := os.ReadDir(filepath.Join(dir, "d"))
	if err != nil || len(list) != len(want) {
		t.Fatalf("%d names, %v", len(list), err)
	}
	for name, body := range want {
		b, err := os.ReadFile(filepath.Join(dir, name)) // a lookup by name: the kernel's binary search
		if err != nil || string(b) != body {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "d", "nn")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestHostUntouched applies layers that try to get out, in a process whose file system is watched: the
// canary is a folder whose listing must stay the same, with a link to it planted by the layer.
func TestHostUntouched(t *testing.T) {
	canary := t.TempDir()
	writeFile(t, filepath.Join(canary, "keep"), []byte("keep"))
	before := tell(t, canary)
	for name, layers := range map[string][][]byte{
		"link, then a file through it": {layerOf(t, e{name: "etc", kind: tar.TypeSymlink, link: canary}), layerOf(t, e{name: "etc/f", body: "x"}, e{name: "etc/keep", body: "lost"})},
		"in one layer":                 {layerOf(t, e{name: "d/"}, e{name: "d", kind: tar.TypeSymlink, link: canary}, e{name: "d/keep", body: "x"})},
		"a whiteout through it":        {layerOf(t, e{name: "etc", kind: tar.TypeSymlink, link: canary}), layerOf(t, e{name: "etc/.wh.keep"}, e{name: "etc/.wh..wh..opq"})},
		"dots in the target":           {layerOf(t, e{name: "l", kind: tar.TypeSymlink, link: "../../../../../../.." + canary}, e{name: "l/keep", body: "x"})},
		"an open file's name":          {layerOf(t, e{name: "l", kind: tar.TypeSymlink, link: "/proc/self/cwd"}, e{name: "l/planted", body: "x"})},
		"devices and setuid":           {layerOf(t, e{name: "sda", kind: tar.TypeBlock, major: 8}, e{name: "su", mode: 0o6755, body: "x"})},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := rootOf(t, imageOf(t, "", nil, layers...), Limits{}); err != nil {
				t.Fatal(err) // inside the image it is an ordinary layer
			}
			same(t, tell(t, canary), strings.Join(before, "\n"))
			if _, err := os.Lstat("planted"); !errors.Is(err, fs.ErrNotExist) {
				t.Error("a file came out in the working directory")
			}
		})
	}
	// The control: tar itself, which follows the link, does harm.
	dir := t.TempDir()
	if err := os.Symlink(canary, filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-C", dir, "--keep-directory-symlink", "-xf", "-")
	cmd.Stdin = bytes.NewReader(layerOf(t, e{name: "etc/"}, e{name: "etc/f", body: "x"}))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	if slices.Equal(tell(t, canary), before) {
		t.Error("the canary sees nothing")
	}
}

// TestDiskFull has no room for the spool, or for the root: an error that says so, and nothing left behind.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small file system")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, 0) })
	m := imageOf(t, "", gzipped, layerOf(t, e{name: "zeros", body: strings.Repeat("\x00", 3<<20)}))
	layout := layoutOf(t, m, "it")
	free := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(small, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bfree
	}
	room := Open(filepath.Join(t.TempDir(), "blobs"))
	img, err := room.Fetch(t.Context(), Layout(layout, ""), amd64, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := writeRoot(t, room, img, Limits{}); err != nil {
		t.Fatal(err) // with room it works
	}
	narrow := Open(filepath.Join(small, "blobs"))
	if _, err := narrow.Fetch(t.Context(), Layout(layout, ""), amd64, nil); err != nil {
		t.Fatal(err)
	}
	before := free()
	if _, _, err := writeRoot(t, narrow, img, Limits{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("spool on a full disk: %v", err)
	}
	if free() != before {
		t.Error("the spool stays")
	}
	f, err := os.Create(filepath.Join(small, "root.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := room.WriteRoot(t.Context(), img, f, Limits{}, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("root on a full disk: %v", err)
	}
	// A download that does not fit.
	m = imageOf(t, "", nil, layerOf(t, e{name: "zeros", body: strings.Repeat("\x00", 3<<20)}))
	if _, err := narrow.Fetch(t.Context(), Layout(layoutOf(t, m, "it"), ""), amd64, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("download to a full disk: %v", err)
	}
	if _, err := narrow.Load(digestOf(m.manifest)); !errors.Is(err, ErrNotFound) {
		t.Errorf("half an image is visible: %v", err)
	}
}
