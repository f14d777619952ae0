package egresstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/websocket"
)

// TestWorld asks every server of the world from the host's end of the cable, by
// the means that the processes under test have.
func TestWorld(t *testing.T) {
	if !Inside(t) {
		return
	}
	w := New(t)
	for _, x := range []struct {
		name string
		f    func(*testing.T, *World)
	}{
		{"Names", testNames}, {"Web", testWeb}, {"Certificates", testCertificates}, {"Tap", testTap},
		{"Canary", testCanary}, {"API", testAPI}, {"Git", testGit}, {"Registries", testRegistries}, {"Cut", testCut},
	} {
		t.Run(x.name, func(t *testing.T) {
			http.DefaultClient.CloseIdleConnections()
			w.Reset()
			x.f(t, w)
		})
	}
	w.close()
	http.DefaultClient.CloseIdleConnections()
	goleak.VerifyNone(t)
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(b)
}

func testNames(t *testing.T, w *World) {
	addrs, err := net.LookupHost(Origin)
	if err != nil || len(addrs) != 2 {
		t.Errorf("%q %v", addrs, err)
	}
	if _, err := net.LookupHost("nowhere.example.com"); err == nil {
		t.Error("a name that nobody made exists")
	}
	if w.DNS.Asked(Origin) != 2 || w.DNS.Asked("nowhere.example.com") == 0 || w.DNS.Asked(Attacker) != 0 {
		t.Errorf("%v", w.DNS.Queries())
	}
	// A name that rebinds.
	w.DNS.Set("rebind.example.com", "93.184.216.66")
	w.DNS.Then("rebind.example.com", []string{"127.0.0.1"}, []string{Metadata})
	for _, want := range []string{"127.0.0.1", Metadata, "93.184.216.66", "93.184.216.66"} {
		ips, err := net.DefaultResolver.LookupIP(t.Context(), "ip4", "rebind.example.com")
		if err != nil || len(ips) != 1 || ips[0].String() != want {
			t.Errorf("%v %v, want %s", ips, err, want)
		}
	}
}

func testWeb(t *testing.T, w *World) {
	if _, got := get(t, "https://"+Origin+"/"); got != "this is "+Origin+"\n" {
		t.Errorf("%q", got)
	}
	if _, got := get(t, "http://"+Origin+":8080/"); got != "this is "+Origin+":8080\n" {
		t.Errorf("%q", got)
	}
	if r, _ := get(t, "https://"+V6Only+"/"); r.StatusCode != 200 || r.ProtoMajor != 2 {
		t.Errorf("%v", r)
	}
	_, got := get(t, "https://"+Origin+"/bytes/1000000")
	if s := sha256.Sum256([]byte(got)); hex.EncodeToString(s[:]) != Sum(1000000) {
		t.Error("the bytes are not those")
	}
	// 100-continue, and a body.
	req, _ := http.NewRequest("POST", "https://"+Origin+"/upload", Bytes(300000))
	req.Header.Set("Expect", "100-continue")
	r, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if strings.TrimSpace(string(b)) != Sum(300000) {
		t.Errorf("%s", b)
	}
	if last := w.Host(Origin).Requests(); len(last[len(last)-1].Body) != 64<<10 || last[len(last)-1].SNI != Origin {
		t.Errorf("%d bytes of the body are kept", len(last[len(last)-1].Body))
	}
	// Events come one by one: the third only when it was asked for.
	if r, err = http.Get("https://" + Origin + "/sse"); err != nil {
		t.Fatal(err)
	}
	two := make([]byte, 30)
	if _, err := io.ReadFull(r.Body, two); err != nil || string(two) != "data: event 1\n\ndata: event 2\n\n" {
		t.Errorf("%q %v", two, err)
	}
	get(t, "https://"+Origin+"/sse/go")
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != "data: event 3\n\n" {
		t.Errorf("%q %v", b, err)
	}
	r.Body.Close()
	// A WebSocket.
	c, err := websocket.Dial("wss://"+Origin+"/ws", "", "https://"+Origin)
	if err != nil {
		t.Fatal(err)
	}
	websocket.Message.Send(c, "hello")
	var said string
	if err := websocket.Message.Receive(c, &said); err != nil || said != "hello" {
		t.Errorf("%q %v", said, err)
	}
	c.Close()
	// Trailers.
	if r, err = http.Post("https://"+Origin+"/grpc", "application/grpc", strings.NewReader("ping")); err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(r.Body)
	r.Body.Close()
	if string(b) != "ping" || r.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%q %v", b, r.Trailer)
	}
	_, text := get(t, "https://"+Redirect+"/to?url=https://"+Echo+"/x")
	var e Echoed
	if err := json.Unmarshal([]byte(text), &e); err != nil || e.URI != "/x" || e.Host != Echo {
		t.Errorf("%v %s", err, text)
	}
	// A byte at a time.
	if _, text = get(t, "https://"+Slow+"/?ms=1"); text != strings.Repeat(".", 60) {
		t.Errorf("%q", text)
	}
}

func testCertificates(t *testing.T, w *World) {
	for name, good := range map[string]bool{Origin: true, CDN: true, Tenant: true, Expired: false, Foreign: false, Wrong: false} {
		c, err := tls.Dial("tcp", name+":443", nil)
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if len(w.Host(Foreign).Requests()) != 0 {
		t.Error("a request went to the host that nobody can verify")
	}
}

func testTap(t *testing.T, w *World) {
	seen := func(s string) bool {
		for _, f := range w.Tap.Beyond() {
			if f.String() == s {
				return true
			}
		}
		return false
	}
	if seen("udp to 8.8.8.8:443") || seen("tcp to 93.184.216.66:80") || seen("tcp to [2606:2800:220:2::66]:80") {
		t.Errorf("before anything was sent: %v", w.Tap.Flows())
	}
	c, err := net.Dial("udp", "8.8.8.8:443")
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	c.Close()
	get(t, "http://"+Attacker+"/")
	if !seen("udp to 8.8.8.8:443") || !seen("tcp to 93.184.216.66:80") && !seen("tcp to [2606:2800:220:2::66]:80") {
		t.Errorf("%v", w.Tap.Flows())
	}
	for _, f := range w.Tap.Beyond("8.8.8.8:443") {
		if f.To.String() == "8.8.8.8" {
			t.Errorf("%v is still there", f)
		}
	}
	// A connection that was there before ends unseen, and says nothing unseen.
	for _, says := range []string{"", "x"} {
		c, err := net.Dial("tcp", w.Host(Attacker).Addrs[0]+":80")
		if err != nil {
			t.Fatal(err)
		}
		w.Tap.Reset()
		if says != "" {
			if _, err := c.Write([]byte(says)); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if f := w.Tap.Beyond(); (len(f) > 0) != (says != "") {
			t.Errorf("it said %q, and was seen as %v", says, f)
		}
	}
}

func testCanary(t *testing.T, w *World) {
	for _, a := range []string{"127.0.0.1", "[::1]", HostAddr, "[" + HostAddr6 + "]"} {
		if _, got := get(t, "http://"+a+":"+w.Canary.Port+"/"); got != CanaryWord+"\n" {
			t.Errorf("%s: %q", a, got)
		}
	}
	if got := w.Canary.Connections(); len(got) != 4 {
		t.Errorf("%q", got)
	}
	for _, a := range []string{Metadata, Private} {
		if _, got := get(t, "http://"+a+"/"); got != "this is "+a+"\n" {
			t.Errorf("%q", got)
		}
	}
	if len(w.Host(MetadataHost).Requests()) != 1 {
		t.Error("the metadata address recorded nothing")
	}
}

func testAPI(t *testing.T, w *World) {
	for key, want := range map[string]int{OwnKey: 200, AttackerKey: 200, "": 401, "sk-placeholder": 401} {
		req, _ := http.NewRequest("POST", "https://api.anthropic.com/v1/files", strings.NewReader("the file"))
		if key != "" {
			req.Header.Set("x-api-key", key)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%q: %d", key, r.StatusCode)
		}
	}
	if got := w.API.Calls(); len(got) != 4 || got[0].Sum != sum([]byte("the file")) {
		t.Errorf("%v", got)
	}
}

// tool runs a program of the host as a person would.
func tool(t *testing.T, dir string, env []string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "HOME="+dir), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testGit(t *testing.T, w *World) {
	dir := t.TempDir()
	env := []string{"GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1"}
	if out, err := tool(t, dir, env, "git", "clone", "https://github.com/"+PublicRepository, "public"); err != nil {
		t.Fatal(err, out)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "public", "README")); string(b) != GitContent {
		t.Errorf("%q", b)
	}
	if out, err := tool(t, dir, env, "git", "clone", "https://github.com/"+PrivateRepository, "private"); err == nil {
		t.Errorf("the private repository opens for everybody: %s", out)
	}
	if out, err := tool(t, dir, env, "git", "clone", "https://x:"+GitToken+"@github.com/"+PrivateRepository, "private"); err != nil {
		t.Fatal(err, out)
	}
	tree := filepath.Join(dir, "private")
	if out, err := tool(t, tree, env, "git", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--allow-empty", "-qm", "second"); err != nil {
		t.Fatal(err, out)
	}
	before := w.Git.Head(t, PrivateRepository, "main")
	if out, err := tool(t, tree, env, "git", "push", "origin", "main"); err != nil {
		t.Fatal(err, out)
	}
	if after := w.Git.Head(t, PrivateRepository, "main"); after == before || after == "" {
		t.Errorf("the push changed nothing: %q, was %q", after, before)
	}
}

// The registries are asked by the tools themselves, where this machine has them:
// in the guest, all of them run.
func testRegistries(t *testing.T, w *World) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module x\n\ngo 1.20\n\nrequire "+GoModule+" v1.0.0\n")
	write("go.sum", w.Registry.GoSum())
	cache := filepath.Join(dir, "mod")
	env := []string{"GOPROXY=https://proxy.golang.org,direct", "GOMODCACHE=" + cache, "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GONOSUMDB=", "GOSUMDB=sum.golang.org"}
	if out, err := tool(t, dir, env, "go", "mod", "download"); err != nil {
		t.Errorf("go: %v %s", err, out)
	}
	if b, _ := os.ReadFile(filepath.Join(cache, GoModule+"@v1.0.0", "word.go")); !strings.Contains(string(b), PackageWord) {
		t.Errorf("go: the module says %q", b)
	}
	_, text := get(t, "https://registry.npmjs.org/"+NPMPackage)
	var p struct {
		Versions map[string]struct{ Dist struct{ Tarball string } }
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	if _, tgz := get(t, p.Versions["1.0.0"].Dist.Tarball); !bytes.Equal([]byte(tgz), w.Registry.tarball) {
		t.Error("npm: another tarball")
	}
	if r, _ := get(t, "http://deb.debian.org/debian/dists/bookworm/Release"); r.StatusCode != 200 {
		t.Errorf("debian: %v", r.Status)
	}
	_, index := get(t, "https://pypi.org/simple/"+PyPIPackage+"/")
	_, link, _ := strings.Cut(index, `href="`)
	link, _, _ = strings.Cut(link, "#")
	if _, whl := get(t, link); !bytes.Equal([]byte(whl), w.Registry.wheel) {
		t.Error("pypi: another wheel")
	}
	deb := filepath.Join(dir, "word.deb")
	if err := os.WriteFile(deb, w.Registry.deb, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := tool(t, dir, nil, "dpkg-deb", "--fsys-tarfile", deb); err != nil || !strings.Contains(out, PackageWord) {
		t.Errorf("dpkg-deb: %v %.200s", err, out)
	}
}

// There is no way from the world to the machine's own network.
func testCut(t *testing.T, w *World) {
	cards, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		if c.Flags&net.FlagUp != 0 && c.Name != "lo" && c.Name != "uplink" {
			t.Errorf("the host's end has the card %s", c.Name)
		}
	}
	// 203.0.113.0/24 is nobody's; behind the gateway there is no further hop.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := new(net.Dialer).DialContext(ctx, "tcp", "203.0.113.9:443"); err == nil {
		c.Close()
		t.Error("somebody answers beyond the world")
	}
}
