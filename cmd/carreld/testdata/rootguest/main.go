//go:build linux

// Rootguest is a static program that does, as a guest's root, what the shares of
// a guest must bear. What it did is judged on the host; what it prints tells how
// often it tried, and what the kernel said.
//
//	rootguest names DIR            make, rename, link and alias names of the lists
//	rootguest race DIR SECONDS     swap a folder and a link under open and create
//	rootguest review DIR           change every file of a review in another way
//	rootguest fill DIR             write until there is no room
//	rootguest remount DIR TAG      have a read-only share written to by another mount
//	rootguest abort DIR            have the kernel give up the share's stream
//	rootguest hold FILE            map a file, say so, and write and read on when told
//	rootguest free ARG...          the same program, out of reach of a task's seccomp
//	rootguest raw TAG WHAT SECONDS raw FUSE messages over a stream of its own: see raw.go
//	rootguest flood TAG MARK       streams for shares: wrong, half, slow, never read
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "rootguest VERB ARG...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func run(verb string, args []string) error {
	switch verb {
	case "names":
		return names(args[0])
	case "race":
		n, _ := strconv.Atoi(args[1])
		return race(args[0], time.Duration(n)*time.Second)
	case "review":
		return review(args[0])
	case "fill":
		return fill(args[0])
	case "hold":
		return hold(args[0])
	case "remount":
		return remount(args[0], args[1])
	case "abort":
		return abort(args[0])
	case "free":
		return free(args)
	case "freed":
		return freed(args[0])
	case "raw":
		n, _ := strconv.Atoi(args[2])
		return raw(args[0], args[1], time.Duration(n)*time.Second)
	case "flood":
		return flood(args[0], args[1])
	}
	return fmt.Errorf("what is %q?", verb)
}

// race swaps d/dir and d/link while others go through d/dir.
func race(d string, length time.Duration) error {
	dir, link := filepath.Join(d, "dir"), filepath.Join(d, "link")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink("../outside", link)); err != nil {
		return err
	}
	var stop atomic.Bool
	var tries, swaps, created atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		for !stop.Load() {
			if unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE) == nil {
				swaps.Add(1)
			}
		}
	})
	for range 2 {
		all.Go(func() {
			name := filepath.Join(dir, "canary")
			for !stop.Load() {
				tries.Add(3)
				if f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644); err == nil {
					created.Add(1)
					f.WriteString("ESCAPED")
					f.Close()
				}
				os.Chmod(name, 0o777)
				os.Remove(name)
			}
		})
	}
	attack(length, &tries, &swaps, &created)
	stop.Store(true)
	all.Wait()
	fmt.Printf("tries %d swaps %d created %d\n", tries.Load(), swaps.Load(), created.Load())
	return nil
}

// attack is the length of a race, and on a slow machine as much longer as it takes
// to have tried what the tests ask for.
func attack(length time.Duration, tries, swaps, created *atomic.Int64) {
	least := max(100, int64(17*length/time.Second))
	begin := time.Now()
	for time.Sleep(length); (tries.Load() < least || swaps.Load() == 0 || created.Load() == 0) && time.Since(begin) < length+2*time.Minute; {
		time.Sleep(20 * time.Millisecond)
	}
}

// review changes what fillReview of the test has made.
func review(d string) error {
	at := func(name string) string { return filepath.Join(d, name) }
	mapped := func() error {
		f, err := os.OpenFile(at("mapped"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := unix.Mmap(int(f.Fd()), 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(b, "EVIL")
		return errors.Join(unix.Msync(b, unix.MS_SYNC), unix.Munmap(b))
	}
	punched := func() error {
		f, err := os.OpenFile(at("punched"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
	}
	return errors.Join(
		os.WriteFile(at("written"), []byte("EVIL"), 0o644),
		os.Remove(at("deleted")),
		os.Rename(at("renamed"), at("newname")),
		os.Truncate(at("cut"), 1),
		os.Chmod(at("mode"), 0o700),
		os.RemoveAll(at("folder")),
		mapped(), punched())
}

// fill writes until the host says that there is no room, and whether room comes back.
func fill(d string) error {
	f, err := os.Create(filepath.Join(d, "fill"))
	if err != nil {
		return err
	}
	block, n := make([]byte, 64<<10), 0
	for err == nil && n < 1<<30 {
		var m int
		m, err = f.Write(block)
		n += m
	}
	if err == nil {
		err = errors.New("it never ends")
	}
	fmt.Printf("wrote %d: %v, no room: %v\n", n, err, errors.Is(err, unix.ENOSPC))
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(d, "after"), []byte("room again"), 0o644)
	fmt.Println("after:", err)
	return err
}

// remount writes to a share through mounts that say nothing of read-only.
func remount(d, tag string) error {
	const again = "/run/again"
	fmt.Println("remount:", unix.Mount("", d, "", unix.MS_REMOUNT, ""))
	os.Mkdir(again, 0o755)
	fmt.Println("again:", unix.Mount(tag, again, "virtiofs", 0, ""))
	defer unix.Unmount(again, unix.MNT_DETACH)
	for _, d := range []string{d, again} {
		at := func(name string) string { return filepath.Join(d, name) }
		f, err := os.OpenFile(at("file"), os.O_RDWR, 0)
		if err == nil {
			f.WriteString("EVIL")
			f.Close()
		}
		fmt.Println(d, err, os.WriteFile(at("made"), []byte("EVIL"), 0o644), os.Remove(at("file")), os.Rename(at("file"), at("moved")),
			os.Chmod(at("file"), 0o777), os.Truncate(at("file"), 0), os.Mkdir(at("dir"), 0o755), os.Link(at("file"), at("hard")), os.Symlink("x", at("link")),
			os.Chtimes(at("file"), time.Unix(1, 0), time.Unix(1, 0)), unix.Mknod(at("node"), unix.S_IFCHR|0o666, 0x103), unix.Setxattr(at("file"), "user.x", []byte("x"), 0))
		b, err := os.ReadFile(at("file"))
		fmt.Printf("reads %q %v\n", b, err)
	}
	return nil
}

func abort(d string) error {
	const control = "/run/fusectl"
	var st unix.Stat_t
	os.Mkdir(control, 0o755)
	if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(control, unix.MNT_DETACH)
	if err := unix.Stat(d, &st); err != nil {
		return err
	}
	return os.WriteFile(fmt.Sprintf("%s/%d/abort", control, st.Dev), []byte("1"), 0)
}

// hold has a file open and mapped when its share goes.
func hold(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	b[0] = 'h'
	fmt.Println("sync before:", unix.Msync(b, unix.MS_SYNC))
	fmt.Println("up")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	copy(b, "LATE")
	fmt.Println("sync:", unix.Msync(b, unix.MS_SYNC))
	_, err = f.WriteAt([]byte("LATE"), 0)
	fmt.Println("write:", err)
	fmt.Println("fsync:", f.Sync())
	_, err = folder.Readdirnames(-1)
	fmt.Println("list:", err)
	fd, err := unix.Openat(int(folder.Fd()), "late", unix.O_CREAT|unix.O_WRONLY, 0o644)
	fmt.Println("create:", fd, err)
	fmt.Println("done")
	return nil
}

// free runs this program anew as the kernel's own helper for a process that
// crashed, which no seccomp filter of a task's is upon: what a root of the guest
// is worth that has broken out of its task.
func free(args []string) error {
	const work, pattern = "/run/freed", "/proc/sys/kernel/core_pattern"
	self, err := os.Executable()
	if err != nil {
		return err
	}
	os.RemoveAll(work)
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	var list []byte
	for _, a := range args {
		list = append(append(list, a...), 0)
	}
	was, err := os.ReadFile(pattern)
	if err != nil {
		return err
	}
	defer os.WriteFile(pattern, was, 0)
	if err := errors.Join(os.WriteFile(work+"/args", list, 0o600), os.WriteFile(pattern, []byte("|"+self+" freed "+work), 0)); err != nil {
		return err
	}
	c := exec.Command("sh", "-c", "kill -SEGV $$")
	c.Dir = "/"
	c.Run()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) { // another process, which gives no event
		if _, err := os.Stat(work + "/done"); err == nil {
			break
		}
		if time.Since(begin) > 2*time.Minute {
			return errors.New("the kernel's helper does not end")
		}
	}
	out, err := os.ReadFile(work + "/out")
	os.Stdout.Write(out)
	return err
}

func freed(work string) error {
	list, err := os.ReadFile(work + "/args")
	if err != nil {
		return err
	}
	out, err := os.Create(work + "/out")
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Dup3(int(out.Fd()), 1, 0), unix.Dup3(int(out.Fd()), 2, 0)); err != nil {
		return err
	}
	var args []string
	for len(list) > 0 {
		i := 0
		for list[i] != 0 {
			i++
		}
		args, list = append(args, string(list[:i])), list[i+1:]
	}
	if err := run(args[0], args[1:]); err != nil {
		fmt.Println("failed:", err)
	}
	return os.WriteFile(work+"/done", nil, 0o600)
}
