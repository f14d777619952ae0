//go:build bench

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
)

// inARow is how many connections one sample of the whole path is the mean of.
const inARow = 10

// fetcher is benchfetch, in a guest or on the host.
type fetcher struct {
	b     *bench
	where string
	in    io.Writer
	lines *bufio.Reader
}

// do has it make so many connections one after the other, and returns the
// milliseconds that all took.
func (f *fetcher) do(way string, times, size int) float64 {
	f.b.Helper()
	begin := time.Now()
	_, err := fmt.Fprintf(f.in, "get %s %d %d\n", way, times, size)
	if err == nil {
		var line string
		if line, err = f.lines.ReadString('\n'); err == nil && line != "ok\n" {
			err = fmt.Errorf("it says %.300q", line)
		}
	}
	if err != nil {
		f.b.Fatalf("benchfetch %s, %s: %v", f.where, way, err)
	}
	return ms(time.Since(begin))
}

// wholePaths measures guest, keeper, egress process and server together, behind
// each wall. The peer is the same program on the host, direct to the same server.
func (b *bench) wholePaths(o *benchOrigin) {
	w := newRing2(b.T)
	w.bin = vmBinaries(b.T)
	// The origin's authority is what this host trusts, and so its guests do.
	w.env = []string{"CARREL_CACHE=" + b.place.Cache, "SSL_CERT_FILE=" + o.roots}
	w.start()
	c := w.client()
	program := b.build("benchfetch")
	for _, wall := range []string{"process", "vm"} {
		b.wholePath(o, c, wall, program)
	}
}

func (b *bench) wholePath(o *benchOrigin, c *client.Client, wall, program string) {
	name := "bench-" + wall
	_, err := c.StartGuest(b.Context(), &api.GuestSpec{
		Name: name, Boundary: wall, Egress: &api.EgressSpec{Rules: o.rules(hostInternal)},
		Shares: []*api.Share{{Path: filepath.Dir(program), GuestPath: "/bench", Mode: api.ShareMode_SHARE_MODE_RO}},
	}, client.GuestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if _, err := c.StopGuest(b.Context(), name, time.Second); err != nil {
			b.Error(err)
		}
	}()
	inside, endInside := b.fetchInside(c, name, o)
	defer endInside()
	outside, endOutside := b.fetchOutside(program, o)
	defer endOutside()
	measure := func(n, times, size int, of func(ms float64) float64) [][]float64 {
		one := func(f *fetcher, way string) func() float64 {
			return func() float64 { return of(f.do(way, times, size)) }
		}
		return b.rounds(n, one(outside, passed), one(inside, passed), one(inside, inspected), one(inside, "self"))
	}
	from := map[string]string{"process": "from behind the process wall", "vm": "from a machine"}[wall]
	how := map[string]string{
		passed:    "the same program " + from + ", through keeper and egress process; passed through",
		inspected: "the same program " + from + "; TLS terminated, the request judged",
	}
	bulk := bulkBytes
	if wall == "vm" && b.accel.Name == qemu.TCG {
		bulk /= 4 // the guest's own TLS is slow there
	}
	for _, x := range []struct {
		name, unit, what, ratio string
		n, times, size          int
		of                      func(ms float64) float64
	}{
		{"setup", "ms", fmt.Sprintf("a connection, its TLS handshake and one small request, the mean of %d in a row", inARow),
			"of one round each", 4 * b.n, inARow, smallBytes, func(ms float64) float64 { return ms / inARow }},
		{"down", "MiB/s", fmt.Sprintf("%d MiB from the server over TLS (HTTP/1.1), connection included", bulk>>20),
			"of one round each, in speed", b.n, 1, bulk, func(ms float64) float64 { return speed(ms, bulk) }},
	} {
		peer := wall + "_peer_" + x.name
		values := measure(x.n, x.times, x.size, x.of)
		b.median(peer, x.unit, values[0], limit{}, x.what+"; a program on the host, direct to a server on its loopback")
		for i, way := range ways {
			b.median(wall+"_"+x.name+"_"+way, x.unit, values[i+1], limit{}, how[way])
			b.ratio(wall+"_"+x.name+"_over_peer_"+way, peer, values[i+1], values[0], limit{}, x.ratio)
		}
		b.median(wall+"_self_"+x.name, x.unit, values[3], limit{}, "the same program "+from+", with the server inside it too, over the guest's own loopback: what TLS itself costs there")
	}
}

// fetchInside starts benchfetch as a task, and returns what ends it.
func (b *bench) fetchInside(c *client.Client, guest string, o *benchOrigin) (*fetcher, func()) {
	b.Helper()
	in, inW := io.Pipe()
	out, outW := io.Pipe()
	at := func(way string) string { return net.JoinHostPort(hostInternal, fmt.Sprint(o.ports[way])) }
	p, err := c.StartTask(b.Context(), client.Task{Guest: guest, Args: []string{"/bench/benchfetch", at(passed), at(inspected)},
		Stdin: in, Stdout: outW, Stderr: os.Stderr})
	if err != nil {
		b.Fatal(err)
	}
	return &fetcher{b, "in the guest " + guest, inW, bufio.NewReader(out)}, func() {
		inW.Close()
		if err := p.Wait(); err != nil {
			b.Errorf("benchfetch in the guest %s: %v", guest, err)
		}
	}
}

// fetchOutside starts it on the host.
func (b *bench) fetchOutside(program string, o *benchOrigin) (*fetcher, func()) {
	b.Helper()
	cmd := exec.Command(program, o.host(passed), o.host(inspected))
	cmd.Env, cmd.Stderr = []string{"SSL_CERT_FILE=" + o.roots}, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return &fetcher{b, "on the host", in, bufio.NewReader(out)}, func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("benchfetch on the host: %v", err)
		}
	}
}
