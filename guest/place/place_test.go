//go:build unix

package place

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAt(t *testing.T) {
	t.Setenv("CARREL_CACHE", "")
	p, err := At("/x/y/")
	if err != nil {
		t.Fatal(err)
	}
	want := Place{Home: "/x/y", State: "/x/y/state", Config: "/x/y/config", Cache: "/x/y/cache", Run: "/x/y/run", Socket: "/x/y/run/d.sock"}
	if p != want {
		t.Errorf("%+v", p)
	}
	t.Setenv("CARREL_CACHE", "/cache")
	if p, err = At("/x/y"); err != nil || p.Cache != "/cache" {
		t.Errorf("CARREL_CACHE: %+v, %v", p, err)
	}
	if got := strings.Join(p.Env(), " "); got != "CARREL_CACHE=/cache CARREL_HOME=/x/y" {
		t.Errorf("Env: %s", got)
	}
	if _, err := At("rel"); err == nil {
		t.Error("a relative CARREL_HOME was taken")
	}
	t.Setenv("CARREL_CACHE", "rel")
	if _, err := At("/x"); err == nil {
		t.Error("a relative CARREL_CACHE was taken")
	}
}

// A home with a long path gets a short runtime folder of its own.
func TestLongHome(t *testing.T) {
	t.Setenv("CARREL_CACHE", "")
	fits := "/" + strings.Repeat("a", maxSocket-len("/run/d.sock")-1)
	p, err := At(fits)
	if err != nil || len(p.Socket) != maxSocket || filepath.Dir(p.Run) != fits {
		t.Fatalf("%d bytes: %+v, %v", len(p.Socket), p, err)
	}
	long, err := At(fits + "b")
	if err != nil || len(long.Socket) > maxSocket || strings.HasPrefix(long.Run, fits) || filepath.Dir(long.Socket) != long.Run {
		t.Fatalf("%+v, %v", long, err)
	}
	if other, err := At(fits + "c"); err != nil || other.Run == long.Run {
		t.Fatalf("two homes share %s (%v)", other.Run, err)
	}
	if again, err := At(fits + "b"); err != nil || again != long {
		t.Fatalf("the same home has %+v, then %+v (%v)", long, again, err)
	}
}

func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	if err := MakePrivate(dir); err != nil {
		t.Fatal(err)
	}
	if err := MakePrivate(dir); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	os.Chmod(dir, 0o750)
	if err := MakePrivate(dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a folder that others may enter: %v", err)
	}
	os.Chmod(dir, 0o700)
	link := filepath.Join(t.TempDir(), "link")
	os.Symlink(dir, link)
	if err := MakePrivate(link); err == nil {
		t.Error("a link was taken for a folder")
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if err := MakePrivate(file); err == nil {
		t.Error("a file was taken for a folder")
	}
	if err := CheckPrivate(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("a missing folder: %v", err)
	}
}

func TestPeer(t *testing.T) {
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := CheckSocket(sock); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := CheckPeer(c.(*net.UnixConn)); err != nil {
		t.Error(err)
	}
	if uid, err := PeerUID(c.(*net.UnixConn)); err != nil || uid != os.Getuid() {
		t.Errorf("peer %d, %v", uid, err)
	}
}
