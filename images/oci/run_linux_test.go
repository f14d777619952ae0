package oci

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hostFile is an entry with the bytes of a file of this machine.
func hostFile(t testing.TB, path, as string) e {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return e{name: strings.TrimPrefix(as, "/"), body: string(b), mode: 0o755}
}

// TestRuns runs programs from roots that it made: of a busybox image, as small distributions are, and of a Debian one,
// with its merged /usr and a later layer that writes through the link /lib.
func TestRuns(t *testing.T) {
	run := func(t *testing.T, m *made, args ...string) string {
		t.Helper()
		path, _, err := rootOf(t, m, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() != 0 {
			t.Skip("only root may mount; fsck.erofs has read the image")
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mountedWith(t, path, "loop,ro,nodev,nosuid")}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	t.Run("busybox", func(t *testing.T) {
		busybox, err := exec.LookPath("busybox")
		if err != nil {
			t.Fatalf("%v (Debian package busybox-static, scripts/setup)", err)
		}
		m := imageOf(t, "", gzipped,
			layerOf(t, hostFile(t, busybox, "/bin/busybox"), e{name: "bin/sh", kind: tar.TypeSymlink, link: "busybox"},
				e{name: "bin/cat", kind: tar.TypeLink, link: "bin/busybox"}, e{name: "etc/motd", body: "old\n"}),
			layerOf(t, e{name: "etc/.wh.motd"}, e{name: "etc/issue", body: "new\n"}))
		if out := run(t, m, "/bin/sh", "-c", "cat /etc/issue; test -e /etc/motd || echo gone"); out != "new\ngone\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("debian", func(t *testing.T) {
		out, err := exec.Command("ldd", "/usr/bin/bash", "/usr/bin/ls").Output()
		if err != nil {
			t.Fatalf("ldd: %v", err)
		}
		base := []e{hostFile(t, "/usr/bin/bash", "/usr/bin/bash")}
		for _, dir := range []string{"bin", "lib", "lib64"} {
			base = append(base, e{name: dir, kind: tar.TypeSymlink, link: "usr/" + dir})
		}
		later := []e{hostFile(t, "/usr/bin/ls", "/bin/ls")}
		seen := map[string]bool{}
		for _, f := range strings.Fields(string(out)) {
			if !strings.HasPrefix(f, "/lib") || seen[f] || strings.HasSuffix(f, ":") {
				continue
			}
			seen[f] = true
			real, err := filepath.EvalSymlinks(f)
			if err != nil {
				t.Fatal(err)
			}
			later = append(later, hostFile(t, real, f)) // lib/x86_64-linux-gnu/libc.so.6, through the link
		}
		m := imageOf(t, "", zstded, layerOf(t, base...), layerOf(t, later...))
		if out := run(t, m, "/bin/bash", "-c", "ls -d /lib /usr/lib; [ -L /lib ] && [ -e /usr/bin/ls ] && echo linked"); out != "/lib\n/usr/lib\nlinked\n" {
			t.Errorf("%q", out)
		}
		// The same image again comes out of another archive of it, byte for byte.
		a, _, err := rootOf(t, m, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := rootOf(t, imageOf(t, "", nil, layerOf(t, base...), layerOf(t, later...)), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		one, _ := os.ReadFile(a)
		two, _ := os.ReadFile(b)
		if !bytes.Equal(one, two) {
			t.Error("the root depends on how its layers were packed")
		}
	})
}
