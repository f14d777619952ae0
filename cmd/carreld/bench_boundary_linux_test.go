//go:build bench

package main

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// Sizes of the work: files of 1 KiB in the archive that is unpacked, functions
// of the program that is compiled.
const (
	untarFiles = 20_000
	functions  = 200
)

// boundary measures the process wall: a run of nothing, beside the least that
// bwrap does and beside srt; and work inside it, beside the same on the host.
func (b *bench) boundary() {
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	w.env = []string{"CARREL_CACHE=" + b.place.Cache}
	w.start()
	c := w.client()
	b.wallRuns(w, c)
	b.wallWork(w, c)
}

// wallRuns times commands from their start to their exit. What is left to do
// then is timed apart, and waited for, so that it does not weigh on the next.
func (b *bench) wallRuns(w *world, c *client.Client) {
	srt := b.srt()
	bwrap := []string{"--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--", "true"}
	var gone []float64
	run := func(flags ...string) func() float64 {
		args := append([]string{"run", "-q", "--boundary", "process"}, flags...)
		return func() float64 {
			took := b.took(w.carrel(append(args, "--", "true")...))
			begin := time.Now()
			eventually(b.T, "the guest of a run is gone", func() bool {
				left, err := c.Guests(b.Context())
				return err == nil && len(left) == 0
			})
			gone = append(gone, ms(time.Since(begin)))
			return took
		}
	}
	x := b.rounds(4*b.n,
		func() float64 { return b.took(exec.Command("bwrap", bwrap...)) },
		func() float64 { return b.took(srt.run("true")) },
		run(), run("--image", hostImage),
	)
	bare, peer := x[0], x[1]
	b.latency("bwrap_run", "ms", bare, limit{}, "`bwrap "+strings.Join(bwrap, " ")+"` to its exit")
	b.latency("srt_run", "ms", peer, limit{}, "`srt true` ("+srt.version+") to its exit, with its defaults")
	b.latency("process_run_gone", "ms", gone, limit{}, "from the exit of such a `carrel run` until its guest is removed, looked at every 10 ms")
	for i, side := range []struct{ name, how string }{
		{"process_run", "`carrel run --boundary process -- true` to its exit: daemon running, image cached, an empty folder shared"},
		{"process_run_host", "the same with `--image host`: this machine's own system, as bwrap and srt have it"},
	} {
		values := x[i+2]
		b.latency(side.name, "ms", values, limit{}, side.how)
		var beyond []float64
		for i := range values {
			beyond = append(beyond, values[i]-bare[i])
		}
		b.median(side.name+"_beyond_bwrap", "ms", beyond, most(60), "what it takes more than bwrap, of one round each")
		b.ratio(side.name+"_over_srt", "srt_run", values, peer, most(1), "of one round each")
	}
}

// wallWork does the same work behind the wall and on the host, with the same
// programs in the same folder.
func (b *bench) wallWork(w *world, c *client.Client) {
	folder := b.memoryFolder(w, "wall")
	b.plantWork(folder)
	g, err := c.StartGuest(b.Context(), &api.GuestSpec{Name: "bench-wall", Boundary: "process", Image: hostImage,
		Shares: []*api.Share{{Path: folder, GuestPath: "/wall", Mode: api.ShareMode_SHARE_MODE_RW}}}, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if _, err := c.StopGuest(b.Context(), g.Name, time.Second); err != nil {
			b.Error(err)
		}
	}()
	var execs []float64
	for i := range 8*b.n + 1 {
		if one := b.task(c, client.Task{Guest: g.Name, Args: []string{"true"}}); i > 0 {
			execs = append(execs, one)
		}
	}
	b.latency("process_exec_client", "ms", execs, limit{}, "`true` in a running guest behind the process wall through the Go client, from the call to its status")

	b.work(c, g, "process", "behind the process wall, the host's system", folder, b.n)
}

// work does the same in a guest and on the host, in one folder, which the guest
// has at /wall. Where it is done once only, which is where machines are emulated,
// there is no turn that does not count, and a part of the archive is unpacked.
func (b *bench) work(c *client.Client, g *api.Guest, name, where, folder string, n int) {
	peer := "host_"
	if name != wallProcess {
		peer = name + "_peer_"
	}
	for _, work := range []struct{ name, script, how string }{
		{"compile", "rm -rf out && mkdir out && gcc -O1 -o out/program program.c && ./out/program",
			"a C program of 200 functions compiled, linked (`gcc -O1`) and run"},
		{"untar", "rm -rf tree && mkdir tree && tar -xf tree.tar -C tree", "an archive of 20,000 files of 1 KiB unpacked into the shared folder, and what was there removed before"},
	} {
		if n == 1 && work.name == "untar" {
			work.script += " --wildcards 'folder0[0-3]*'"
			work.how = strings.Replace(work.how, "an archive of 20,000 files", "4,000 files of an archive of 20,000", 1)
		}
		within := func() float64 {
			return b.task(c, client.Task{Guest: g.Name, Dir: "/wall", Args: []string{"sh", "-ec", work.script}, Stdout: os.Stderr, Stderr: os.Stderr})
		}
		without := func() float64 {
			cmd := exec.Command("sh", "-ec", work.script)
			cmd.Dir = folder
			return b.took(cmd)
		}
		var inside, outside []float64
		if n == 1 {
			outside, inside = []float64{without()}, []float64{within()}
		} else {
			inside, outside = b.turns(n, within, without)
		}
		b.median(name+"_"+work.name, "ms", inside, limit{}, work.how+"; as a task "+where+", the folder shared rw")
		b.median(peer+work.name, "ms", outside, limit{}, "the same script on the host, in the same folder")
		b.ratio(name+"_over_host_"+work.name, peer+work.name, inside, outside, limit{}, "pairs of the two above")
	}
}

// plantWork writes what the work is done on.
func (b *bench) plantWork(dir string) {
	var s strings.Builder
	s.WriteString("#include <stdio.h>\n#include <string.h>\n")
	for i := range functions {
		fmt.Fprintf(&s, "static int f%d(int x) { char b[64]; snprintf(b, sizeof b, \"%%d\", x); for (int i = 0; i < 9; i++) x = x * %d + (int)strlen(b) %% (i + 3); return x; }\n", i, i+3)
	}
	s.WriteString("int main(void) { unsigned x = 1;\n")
	for i := range functions {
		fmt.Fprintf(&s, "x ^= f%d(x & 0xff);\n", i)
	}
	s.WriteString("return x == 42; }\n")
	if err := os.WriteFile(filepath.Join(dir, "program.c"), []byte(s.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "tree.tar"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	body := make([]byte, 1<<10)
	for i := range untarFiles {
		h := &tar.Header{Name: fmt.Sprintf("folder%03d/file%d", i/100, i), Mode: 0o644, Size: int64(len(body))}
		if err = tw.WriteHeader(h); err == nil {
			_, err = tw.Write(body)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
}
