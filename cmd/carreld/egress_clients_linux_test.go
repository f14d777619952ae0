package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// http3Client names the client with a QUIC of its own, which is a module of its
// own and so may have to be fetched: that is done where the internet is.
const http3Client = "CARREL_TEST_HTTP3"

// buildHTTP3 builds it, for the copy of the test that egresstest.Inside starts.
func buildHTTP3(t *testing.T) {
	t.Helper()
	if os.Getenv(http3Client) != "" {
		return
	}
	bin := filepath.Join(t.TempDir(), "http3")
	run(t, append(os.Environ(), "CGO_ENABLED=0"), "go", "build", "-C", "testdata/http3", "-o", bin, ".")
	t.Setenv(http3Client, bin)
}

func run(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v (run scripts/setup)\n%s", args, err, out)
	}
}

// lines are what a program prints, "what: how" each.
func (s *site) lines(t *testing.T, script string) map[string]string {
	t.Helper()
	got := sh(t, s.c, s.guest, "", script)
	if got.status != 0 {
		t.Fatalf("%s: status %d\n%s", script, got.status, got.out)
	}
	lines := map[string]string{}
	for l := range strings.Lines(got.out) {
		if what, how, ok := strings.Cut(strings.TrimSpace(l), ": "); ok {
			lines[what] = how
		}
	}
	return lines
}

// A client that prefers HTTP/3 hears at once that there is no QUIC, and gets
// through by TCP.
func testEgressQUIC(t *testing.T, s *site) {
	b, err := os.ReadFile(os.Getenv(http3Client))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(s.tools, "http3")
	if err := os.WriteFile(bin, b, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bin)
	if got := s.lines(t, "/tools/http3 self")["self"]; !strings.Contains(got, "HTTP/3.0 200") {
		t.Errorf("control: QUIC on the guest's own loopback: %s", got)
	}
	for _, host := range []string{egresstest.Origin, egresstest.Second, egresstest.Attacker} {
		url := "https://" + host + "/"
		got := s.lines(t, "/tools/http3 "+url)[url]
		t.Logf("%s: %s", host, got)
		quic, tcp, _ := strings.Cut(got, "; then ")
		// How long that took is the machine's affair, too: what the library has waited
		// for in vain it calls a timeout, or a deadline.
		if said := strings.ToLower(quic); !strings.HasPrefix(said, "error after ") || strings.Contains(said, "timeout") || strings.Contains(said, "deadline") {
			t.Errorf("%s: QUIC is not refused at once: %s", host, got)
		}
		if host == egresstest.Attacker {
			if !strings.Contains(tcp, "access denied") {
				t.Errorf("%s: %s", host, tcp)
			}
		} else if !strings.Contains(tcp, `200 OK "this is `+host) {
			t.Errorf("%s is not reached by TCP: %s", host, tcp)
		}
	}
	s.quiet(t, egresstest.Origin, egresstest.Second)
}

// A static program that is linked with musl, whose look-ups are its own: names
// have an IPv4 address and no other, and lead where rules allow.
func testEgressMusl(t *testing.T, s *site) {
	bin := filepath.Join(s.tools, "musl")
	run(t, os.Environ(), "musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", bin, "testdata/musl/main.c")
	defer os.Remove(bin)
	for at, want := range map[string]string{
		egresstest.Origin + " 8080": "this is " + egresstest.Origin,
		egresstest.Second + " 80":   "this is " + egresstest.Second,
		egresstest.Attacker + " 80": "403",
	} {
		got := s.lines(t, "/tools/musl "+at)[strings.Replace(at, " ", ":", 1)]
		t.Logf("%s: %s", at, got)
		_, v6, _ := strings.Cut(got, "v6=")
		if !strings.Contains(got, "v4=198.1") || !strings.Contains(got, want) || !strings.HasPrefix(v6, "Name ") { // "... does not resolve"
			t.Errorf("%s: %s", at, got)
		}
	}
	s.quiet(t, egresstest.Origin, egresstest.Second)
}

// A Java virtual machine, made small from a JDK (openjdk-17-jdk-headless).
func testEgressJVM(t *testing.T, s *site) {
	jlink, err := exec.LookPath("jlink")
	if err != nil {
		t.Fatalf("%v (apt-get install openjdk-17-jdk-headless)", err)
	}
	jre := filepath.Join(s.tools, "jre")
	defer os.RemoveAll(jre)
	run(t, os.Environ(), jlink, "--add-modules", "java.net.http,jdk.crypto.ec", "--strip-java-debug-attributes", "--no-header-files", "--no-man-pages", "--output", jre)
	real, err := filepath.EvalSymlinks(jlink)
	if err != nil {
		t.Fatal(err)
	}
	run(t, os.Environ(), filepath.Join(filepath.Dir(real), "javac"), "-d", jre, "testdata/jvm/Fetch.java")
	origin, second, attacker := "https://"+egresstest.Origin+"/", "https://"+egresstest.Second+"/", "https://"+egresstest.Attacker+"/"
	// On one processor: QEMU's software emulation of several has run code on one
	// that the JVM's compiler was patching on another (SIGILL, QEMU 7.2).
	got := s.lines(t, fmt.Sprintf("taskset -c 0 /tools/jre/bin/java -cp /tools/jre Fetch /etc/ssl/certs/ca-certificates.crt %s %s %s http://%s/", origin, second, attacker, egresstest.Attacker))
	for url, want := range map[string]string{
		origin: "this is " + egresstest.Origin, second: "this is " + egresstest.Second, attacker: "access_denied", "http://" + egresstest.Attacker + "/": "403 carrel: egress to",
	} {
		t.Logf("%s: %s", url, got[url])
		if !strings.Contains(got[url], want) {
			t.Errorf("%s: %s", url, got[url])
		}
	}
	s.quiet(t, egresstest.Origin, egresstest.Second)
}
