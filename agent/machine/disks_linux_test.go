package machine

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// boxed is a machine in a folder.
type boxed struct {
	t *testing.T
	hardware
}

func newBox(t *testing.T) boxed {
	dir := t.TempDir()
	b := boxed{t, hardware{sys: dir + "/sys", dev: dir + "/dev", patience: time.Hour}}
	b.listen = func() (listener, error) { return nil, errors.New("nobody tells of devices here") }
	b.write("dev/null", "")
	return b
}

func (b boxed) write(path, text string) {
	b.t.Helper()
	path = filepath.Join(filepath.Dir(b.sys), path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

func (b boxed) virtio(name, ro, serial string) {
	b.write("sys/block/"+name+"/ro", ro+"\n")
	b.write("sys/block/"+name+"/serial", serial)
	b.write("dev/"+name, "")
}

// scsi puts a disk at an address; ready says whether it can be opened.
func (b boxed) scsi(name, address string, ready bool) {
	b.t.Helper()
	dir := filepath.Join(b.sys, "block", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Symlink("../../../"+address, dir+"/device"); err != nil && !errors.Is(err, os.ErrExist) {
		b.t.Fatal(err)
	}
	if ready {
		b.write("dev/"+name, "")
	}
}

// TestDisks: the hypervisor's word says what a disk is for, and what is ambiguous is refused.
func TestDisks(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(b boxed)
		want []string
		got  map[string]string // device names by purpose
		err  string
	}{
		{name: "virtio in any order", make: func(b boxed) {
			b.virtio("vda", "0", "")
			b.virtio("vdb", "0", "volume3\n")
			b.virtio("vdc", "1", "")
			b.virtio("vdaa", "0", "volume0")
		}, want: []string{"image", "scratch", "volume0"}, got: map[string]string{"scratch": "vda", "volume3": "vdb", "image": "vdc", "volume0": "vdaa"}},
		{name: "SCSI in any order", make: func(b boxed) {
			b.scsi("sda", "2:0:0:1", true)
			b.scsi("sdb", "2:0:0:5", true)
			b.scsi("sdc", "2:0:0:0", true)
			b.scsi("sdd", "2:0:0:2", true)
		}, want: []string{"image", "scratch", "volume3"}, got: map[string]string{"scratch": "sda", "volume3": "sdb", "image": "sdc", "volume0": "sdd"}},
		{name: "no scratch", make: func(b boxed) { b.scsi("sda", "0:0:0:0", true) }, want: []string{"image"}, got: map[string]string{"image": "sda"}},
		{name: "not disks of ours", make: func(b boxed) {
			b.virtio("vda", "1", "")
			b.virtio("loop0", "1", "")
			b.virtio("sr0", "1", "")
		}, want: []string{"image"}, got: map[string]string{"image": "vda"}},
		{name: "two images", make: func(b boxed) { b.virtio("vda", "1", ""); b.virtio("vdb", "1", "") }, want: []string{"image"}, err: "same purpose: image"},
		{name: "two scratch disks", make: func(b boxed) {
			b.virtio("vda", "1", "")
			b.virtio("vdb", "0", "")
			b.virtio("vdc", "0", "other")
		}, want: []string{"image"}, err: "same purpose: scratch"},
		{name: "one volume twice", make: func(b boxed) { b.virtio("vda", "0", "volume0"); b.virtio("vdb", "0", "volume0") }, want: []string{"volume0"}, err: "same purpose: volume0"},
		{name: "two buses", make: func(b boxed) { b.virtio("vda", "1", ""); b.scsi("sda", "0:0:0:0", true) }, want: []string{"image"}, err: "same purpose: image"},
		{name: "two controllers", make: func(b boxed) { b.scsi("sda", "0:0:0:0", true); b.scsi("sdb", "1:0:0:0", true) }, want: []string{"image"}, err: "same purpose: image"},
		{name: "no disk", make: func(boxed) {}, want: []string{"image"}, err: "no disk for image"},
		{name: "no such volume", make: func(b boxed) { b.virtio("vda", "1", "") }, want: []string{"volume0"}, err: "no disk for volume0"},
		{name: "no address", make: func(b boxed) { b.scsi("sda", "0:0:0", true) }, want: []string{"image"}, err: "no address"},
		{name: "a unit without end", make: func(b boxed) { b.scsi("sda", "0:0:0:99999999999", true) }, want: []string{"image"}, err: "no address"},
		{name: "not ready, and no bus that would tell", make: func(b boxed) { b.scsi("sda", "0:0:0:0", false) }, want: []string{"image"}, err: "no disk for image"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBox(t)
			tc.make(b)
			got, err := b.disks(tc.want...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v, %v; want an error with %q", got, err, tc.err)
				}
				return
			}
			want := map[string]string{}
			for purpose, name := range tc.got {
				want[purpose] = b.dev + "/" + name
			}
			if err != nil || !maps.Equal(got, want) {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
		})
	}
}

// told is a listener whose messages are functions: each is what has happened when it comes.
type told struct {
	happen []func()
	closed bool
}

func (l *told) Next(time.Time) error {
	if len(l.happen) == 0 {
		return os.ErrDeadlineExceeded
	}
	l.happen[0]()
	l.happen = l.happen[1:]
	return nil
}

func (l *told) Close() error { l.closed = true; return nil }

// TestLateDisks: behind Hyper-V disks come while we look, in steps, and those that are wanted are waited for.
func TestLateDisks(t *testing.T) {
	b := newBox(t)
	b.write("sys/bus/vmbus/uevent", "")
	l := &told{happen: []func(){
		func() {},
		func() { b.scsi("sda", "0:0:0:0", false) },
		func() { b.scsi("sda", "0:0:0:0", true) },
		func() { b.scsi("sdb", "0:0:0:1", true) },
		func() { t.Error("a message was waited for when all was there") },
	}}
	// One that comes between the first look and the listening is told by nobody.
	b.listen = func() (listener, error) { b.scsi("sdc", "0:0:0:2", true); return l, nil }
	got, err := b.disks(imageDisk, scratchDisk)
	if want := fmt.Sprintf("map[image:%[1]s/sda scratch:%[1]s/sdb volume0:%[1]s/sdc]", b.dev); err != nil || fmt.Sprint(got) != want || !l.closed {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	b.listen = func() (listener, error) { return &told{}, nil }
	if got, err := b.disks(imageDisk, "volume1"); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "volume1") {
		t.Errorf("a disk that never comes: %v, %v", got, err)
	}
	if got, err := b.disks(imageDisk, "volume0"); err != nil {
		t.Errorf("disks that are there were waited for: %v, %v", got, err)
	}
}

// TestDeviceMessages: the socket's end of waiting is told as such. That a message arrives, the
// agent's self-test tries in a guest.
func TestDeviceMessages(t *testing.T) {
	s, err := here.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Next(time.Now().Add(-time.Second)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}
