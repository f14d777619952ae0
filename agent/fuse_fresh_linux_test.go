package agent

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/guest/wire"
)

// request is a message as the kernel sends it.
func request(op uint32, unique, node uint64, args int, names ...string) []byte {
	b := make([]byte, inHeader+args)
	binary.LittleEndian.PutUint32(b[4:], op)
	binary.LittleEndian.PutUint64(b[8:], unique)
	binary.LittleEndian.PutUint64(b[16:], node)
	for _, n := range names {
		b = append(append(b, n...), 0)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// made is the answer to a request that made something.
func made(unique, node uint64) []byte {
	return answer(outHeader+128, unique, string(binary.LittleEndian.AppendUint64(nil, node))+strings.Repeat("\x00", 120))
}

// TestFresh: what is known of a folder is that it was empty, what was put there
// since, and for how long that counts.
func TestFresh(t *testing.T) {
	f, now := newFresh(), time.Unix(1000, 0)
	f.now = func() time.Time { return now }
	absent := func(want bool, node uint64, name string) {
		t.Helper()
		if got := f.asked(request(fuseLookup, 1, node, 0, name)); got != want {
			t.Errorf("%s in %d: absent is %t", name, node, got)
		}
	}
	mkdir := func(unique, node uint64, name string) {
		if f.asked(request(fuseMkdir, unique, 1, 8, name)) {
			t.Error("a folder is not made")
		}
		f.answered(made(unique, node))
	}
	absent(false, 1, "x")
	mkdir(10, 7, "new")
	absent(false, 1, "new")
	absent(true, 7, "x")

	refused := answer(outHeader, 11, "")
	binary.LittleEndian.PutUint32(refused[4:], ^uint32(unix.EEXIST)+1)
	f.asked(request(fuseMkdir, 11, 1, 8, "old"))
	f.answered(refused)
	absent(false, 0, "x")

	rename := request(fuseRename, 12, 1, 8, "from", "to")
	binary.LittleEndian.PutUint64(rename[inHeader:], 7)
	exchange := request(fuseRename2, 13, 7, 16, "mine", "theirs")
	binary.LittleEndian.PutUint64(exchange[inHeader:], 1)
	for name, m := range map[string][]byte{
		"created":  request(fuseCreate, 20, 7, 16, "created"),
		"made":     request(fuseMknod, 21, 7, 16, "made"),
		"folder":   request(fuseMkdir, 22, 7, 8, "folder"),
		"link":     request(fuseSymlink, 23, 7, 0, "link", "target"),
		"linked":   request(fuseLink, 24, 7, 8, "linked"),
		"to":       rename,
		"mine":     exchange,
		"of unix2": nil,
	} {
		absent(true, 7, name)
		if m != nil {
			f.asked(m)
			absent(false, 7, name)
		}
	}
	absent(true, 7, "target")

	f.forget()
	absent(false, 7, "x")
	mkdir(30, 8, "later")
	now = now.Add(freshFor - 1)
	absent(true, 8, "x")
	now = now.Add(1)
	absent(false, 8, "x")
	if len(f.dirs) != 0 {
		t.Error("it is remembered beyond its time")
	}

	// The time counts from the question: what somebody else put there before
	// the answer came is seen a second later.
	f.asked(request(fuseMkdir, 40, 1, 8, "slow"))
	now = now.Add(freshFor)
	f.answered(made(40, 9))
	absent(false, 9, "x")
}

// TestFreshBounds: it does not grow without end, and what it has no room for is
// asked as before.
func TestFreshBounds(t *testing.T) {
	f, now := newFresh(), time.Unix(1000, 0)
	f.now = func() time.Time { return now }
	for i := range uint64(3 * maxFresh) {
		f.asked(request(fuseMkdir, i, 1, 8, "d"))
		if i%3 > 0 {
			f.answered(made(i, 100+i))
		}
	}
	if len(f.dirs) > maxFresh || len(f.making) > maxFresh {
		t.Errorf("%d folders, %d questions", len(f.dirs), len(f.making))
	}
	f = newFresh()
	f.asked(request(fuseMkdir, 1, 1, 8, "d"))
	f.answered(made(1, 5))
	for i := range maxFreshNames {
		f.asked(request(fuseCreate, 2, 5, 16, strings.Repeat("n", i+1)))
	}
	if !f.asked(request(fuseLookup, 3, 5, 0, "x")) {
		t.Error("control: x may be there")
	}
	f.asked(request(fuseCreate, 2, 5, 16, "one more"))
	if f.asked(request(fuseLookup, 3, 5, 0, "x")) {
		t.Error("a folder of many names is remembered")
	}
}

// FuzzFresh: nothing that a kernel could send breaks it.
func FuzzFresh(f *testing.F) {
	f.Add(request(fuseMkdir, 1, 1, 8, "d"), made(1, 5), request(fuseLookup, 2, 5, 0, "x"))
	f.Add(request(fuseRename2, 1, 5, 16, "a", "b"), answer(outHeader, 1, ""), request(fuseCreate, 2, 5, 3))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		known := newFresh()
		for _, m := range [][]byte{a, c} {
			if len(m) >= inHeader {
				known.asked(m)
			}
			if len(b) >= outHeader {
				known.answered(b)
			}
		}
	})
}

// TestFuseFresh: in a folder that a task has just made its own names are there,
// and those that the host puts there are seen as docs/sharing.md says, whatever
// the agent has answered by itself.
func TestFuseFresh(t *testing.T) {
	m := mounting(t)
	if m == nil {
		return
	}
	s := newSharing(t)
	dir := s.folder("share0", rules.ReadWrite)
	h := shared(t, m, s, &wire.Mount{Tag: "share0", Type: "fuse", Path: "/run/w"})
	h.good(`cd /run/w; mkdir a a/b; ! test -e a/x; echo 1 >a/x; test -s a/x; mv a/x a/b/y; test -s a/b/y; ! test -e a/x
		ln -s y a/b/l; test -s a/b/l; ln a/b/y a/z; cmp a/z a/b/y; mkdir c; mv c a/c; test -d a/c; rm a/z; ! test -e a/z; rm -r a; ! test -e a`)

	var st unix.Stat_t
	if err := unix.Mkdir("/run/w/new", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/new/theirs", "of the host")
	// Without having looked: an exclusive create is the host's to judge, and
	// another opens what is there.
	if fd, err := unix.Open("/run/w/new/theirs", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644); !errors.Is(err, unix.EEXIST) {
		t.Errorf("an exclusive create of what is there: %d, %v", fd, err)
	}
	if err := unix.Mkdir("/run/w/again", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/again/theirs", "of the host")
	end := time.Now().Add(freshFor + patience)
	for unix.Stat("/run/w/again/theirs", &st) != nil {
		if time.Now().After(end) {
			t.Fatal("a name of the host's is never seen")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := unix.Mkdir("/run/w/third", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/third/theirs", "of the host")
	h.good("true") // the agent is up
	if e := h.refresh("/run/w"); e != "" {
		t.Fatal(e)
	}
	if err := unix.Stat("/run/w/third/theirs", &st); err != nil {
		t.Errorf("after a refresh: %v", err)
	}
	if _, err := os.Stat(dir + "/a"); !os.IsNotExist(err) {
		t.Error(err)
	}
}
