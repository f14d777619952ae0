//go:build bench

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// Sizes of a review: files of 1 KiB in the folder, and how many a guest changes.
const (
	changeFolders = 500
	reviewFiles   = 50_000
	reviewChanged = 1000
)

// review measures what is done on the host with a guest's changes: through the
// command line, its daemon and the confined process that reads them.
func (b *bench) review() {
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	w.start()
	c := w.client()
	folder, other := b.memoryFolder(w, "review"), b.memoryFolder(w, "other")
	body := bytes.Repeat([]byte("a line of a file\n"), 60)
	for i := range changeFolders {
		dir := filepath.Join(folder, fmt.Sprintf("folder%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range reviewFiles / changeFolders {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d.txt", j)), body, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := exec.Command("chown", "-R", fmt.Sprintf("%d:%d", taskUser, taskUser), folder).Run(); err != nil {
		b.Fatal(err)
	}
	const name = "bench-review"
	if _, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: name, Boundary: wallProcess, Image: hostImage,
		Shares: []*api.Share{{Path: folder, GuestPath: "/wall", Mode: api.ShareMode_SHARE_MODE_REVIEW}}}, client.GuestOptions{}); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := c.RemoveGuest(b.Context(), name, true); err != nil {
			b.Error(err)
		}
	}()
	change := func() {
		b.task(c, client.Task{Guest: name, Dir: "/wall", Stderr: os.Stderr, Args: []string{"sh", "-ec",
			`for f in folder*/file0.txt folder*/file1.txt; do echo "one line more" >>"$f"; done`}})
		sum, err := c.ReviewSummary(b.Context(), name)
		if err != nil {
			b.Fatal(err)
		}
		if sum.Changed != reviewChanged {
			b.Fatalf("the guest has %d changes, not %d", sum.Changed, reviewChanged)
		}
	}
	walk := func() float64 {
		cmd := exec.Command("find", folder, "-printf", "%s %T@\n")
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		return ms(time.Since(begin))
	}
	change()
	x := b.rounds(b.n, func() float64 { return b.took(w.carrel("diff", "--stat", name)) }, func() float64 { return b.took(w.carrel("diff", name)) }, walk)
	stat, text, walked := x[0], x[1], x[2]
	b.median("diff_stat", "ms", stat, limit{}, "`carrel diff --stat` to its exit: 1,000 changed files among 50,000 of 1 KiB, the guest (process wall) running, which is asked anew what it changed")
	b.median("diff_text", "ms", text, limit{}, "the same with the changes themselves: `carrel diff`")
	b.median("plain_walk", "ms", walked, limit{}, "a plain walk of the same folder on the host: `find -printf '%s %T@'`")
	b.ratio("diff_stat_over_walk", "plain_walk", stat, walked, most(2), "of one round each")
	b.ratio("diff_text_over_walk", "plain_walk", text, walked, most(2), "of one round each")

	var tasks []float64
	for range b.n {
		tasks = append(tasks, b.task(c, client.Task{Guest: name, Args: []string{"true"}}))
	}
	b.median("review_task", "ms", tasks, limit{}, "`true` in that guest through the Go client, from the call to its status: at a task's end the 1,000 changes are looked through")

	apply, copied := b.turns(b.n,
		func() float64 {
			change()
			return b.took(w.carrel("apply", name))
		},
		func() float64 {
			// Beside, as many new files are written the least careful way there is.
			cmd := exec.Command("sh", "-ec", `mkdir "$2"/new; cd "$1"; cp --parents -p folder*/file0.txt folder*/file1.txt "$2"/new`, "sh", folder, other)
			took := b.took(cmd)
			if err := os.RemoveAll(filepath.Join(other, "new")); err != nil {
				b.Fatal(err)
			}
			return took
		})
	b.median("apply", "ms", apply, limit{}, "`carrel apply` of the 1,000 changed files to its exit: each is compared, kept for undo and replaced; the folder in memory, what is kept for undo on this machine's disk")
	b.median("plain_copy", "ms", copied, limit{}, "the same files copied by `cp` to a folder in memory")
	b.ratio("apply_over_copy", "plain_copy", apply, copied, limit{}, "pairs of the two above")
}

// memoryFolder makes a folder in memory, as the disk is not what is measured;
// under /dev nothing is shared.
func (b *bench) memoryFolder(w *world, name string) string {
	folder := filepath.Join(w.work, name)
	if err := os.Mkdir(folder, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=512m,mode=0755"); err != nil {
		b.Fatalf("mount a tmpfs: %v", err)
	}
	b.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	return folder
}
