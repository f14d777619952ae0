package images

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeAgent writes a Linux program that is nothing but its header: enough for an initrd. One for the other
// architecture lies beside it.
func fakeAgent(t *testing.T, marker string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	for arch, machine := range machines {
		fakeAgentFor(t, AgentFor(path, arch), machine, marker+" for "+arch)
	}
	return path
}

func fakeAgentFor(t *testing.T, path string, machine elf.Machine, marker string) {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64,
	}
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	b.WriteString(marker)
	if err := os.WriteFile(path, b.Bytes(), 0o700); err != nil {
		t.Fatal(err)
	}
}

// fakeRecipes writes recipes that count how often they ran, in the folder that is returned with them.
func fakeRecipes(t *testing.T, kernel, root string) (recipes, counts string) {
	t.Helper()
	recipes, counts = t.TempDir(), t.TempDir()
	for kind, body := range map[string]string{"kernel": kernel, "default": root} {
		dir := filepath.Join(recipes, kind)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		script := "set -eu\nif [ \"$1\" = --inputs ]; then echo fake 1; exit 0; fi\nout=$1\necho ran >>" + filepath.Join(counts, kind) + "\n" + body
		if err := os.WriteFile(filepath.Join(dir, "build"), []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return recipes, counts
}

const (
	goodKernel = "echo 'carrel-step: 3/4 half way'\necho kernel >$out/vmlinuz\necho 6.12-fake >$out/release\necho rubbish >$out/rubbish\n"
	goodRoot   = "echo root >$out/root.erofs\necho 'git 1:2' >$out/packages\necho 'git 1:2' >$out/tools\necho 5 >$out/uncompressed\n"
)

func ran(t *testing.T, counts, kind string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(counts, kind))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("ran"))
}

func TestBuild(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "cache"))
	recipes, counts := fakeRecipes(t, goodKernel, goodRoot)
	var events []Event
	o := BuildOptions{Name: "default", Recipes: recipes, Agent: fakeAgent(t, "1"), Progress: func(e Event) { events = append(events, e) }}
	img, err := s.Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "default"); err != nil || got.Root != img.Root {
		t.Fatalf("Get: %v, %v", got, err)
	}
	if m := img.Manifest; m.KernelVersion != "6.12-fake" || m.RootUncompressed != 5 || len(m.Tools) != 1 || m.Tools[0] != (Item{"git", "1:2"}) {
		t.Errorf("manifest: %+v", m)
	}
	seen := false
	for _, e := range events {
		seen = seen || e == Event{Stage: "kernel", Done: 3, Total: 4, Line: "half way"}
	}
	if !seen {
		t.Errorf("no event of the recipe's step: %v", events)
	}
	if left, _ := filepath.Glob(filepath.Join(s.cache, "*", "*", "rubbish")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}

	again, err := s.Build(t.Context(), o)
	if err != nil || again.Manifest.Created != img.Manifest.Created {
		t.Fatalf("second build: %v, %v", again, err)
	}
	if k, r := ran(t, counts, "kernel"), ran(t, counts, "default"); k != 1 || r != 1 {
		t.Errorf("recipes ran %d and %d times, expected once each", k, r)
	}

	// Another agent: a new initrd and no more.
	o.Agent = fakeAgent(t, "2")
	other, err := s.Build(t.Context(), o)
	if err != nil || other.Manifest.Part(Initrd) == img.Manifest.Part(Initrd) || other.Manifest.Part(Root) != img.Manifest.Part(Root) {
		t.Errorf("build with another agent: %v, %v", other, err)
	}
	// Another recipe: that part again, and no other.
	if err := os.WriteFile(filepath.Join(recipes, "kernel", "config"), []byte("CONFIG_X=y"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if k, r := ran(t, counts, "kernel"), ran(t, counts, "default"); k != 2 || r != 1 {
		t.Errorf("recipes ran %d and %d times, expected 2 and 1", k, r)
	}
	// A damaged cache is made again, and so is the image that shared its bytes.
	if err := os.WriteFile(img.Root, []byte("bad\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), "default"); !errors.Is(err, ErrDamaged) {
		t.Errorf("Verify: %v, expected ErrDamaged", err)
	}
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), "default"); err != nil {
		t.Error(err)
	}
}

func TestBuildFails(t *testing.T) {
	dynamic := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(dynamic, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err)
	}
	if sh, err = filepath.EvalSymlinks(sh); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		kernel, root, agent, want string
	}{
		"a recipe that fails":            {kernel: "echo reason >&2; echo -e 'c\\x1b[2Jl' >&2; exit 3", want: "reason"},
		"a recipe without its result":    {kernel: "echo x >$out/release", want: "vmlinuz"},
		"an empty result":                {kernel: goodKernel + ": >$out/vmlinuz", want: "vmlinuz is empty"},
		"a link for a result":            {kernel: goodKernel + "ln -sf /etc/passwd $out/vmlinuz", want: "vmlinuz"},
		"a size that is none":            {root: goodRoot + "echo big >$out/uncompressed", want: "uncompressed"},
		"a package with escapes":         {root: goodRoot + "printf 'git \\033[2J\\n' >$out/packages", want: "packages"},
		"an agent that is gone":          {agent: filepath.Join(t.TempDir(), "none"), want: "make build"},
		"an agent that is no program":    {agent: dynamic, want: "not a Linux program"},
		"an agent that wants libraries":  {agent: sh, want: "not static"},
		"a tool that is missing by name": {kernel: "echo 'carrel-missing: flex' >&2; exit 69", want: "flex"},
	} {
		t.Run(what, func(t *testing.T) {
			s := Open(t.TempDir())
			if c.kernel == "" {
				c.kernel = goodKernel
			}
			if c.root == "" {
				c.root = goodRoot
			}
			if c.agent == "" {
				c.agent = fakeAgent(t, "")
			}
			recipes, _ := fakeRecipes(t, c.kernel, c.root)
			_, err := s.Build(t.Context(), BuildOptions{Name: "default", Recipes: recipes, Agent: c.agent})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("Build: %v, expected an error with %q", err, c.want)
			}
			if missing := strings.Contains(what, "tool"); errors.Is(err, ErrTool) != missing || missing && !strings.Contains(err.Error(), "scripts/setup") {
				t.Errorf("Build: %v, ErrTool expected: %v", err, missing)
			}
			if _, err := s.Get(t.Context(), "default"); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get: %v, expected ErrNotFound", err)
			}
			if left, _ := os.ReadDir(filepath.Join(s.cache, "tmp")); len(left) > 0 {
				t.Errorf("left in tmp: %v", left)
			}
		})
	}
}

// Many builds of one name at once: the recipes run once, and all get the same image.
func TestConcurrentBuilds(t *testing.T) {
	cache := t.TempDir()
	recipes, counts := fakeRecipes(t, goodKernel, goodRoot)
	agent := fakeAgent(t, "")
	var wg sync.WaitGroup
	created := make([]string, 8)
	for i := range created {
		wg.Go(func() {
			img, err := Open(cache).Build(t.Context(), BuildOptions{Name: "default", Recipes: recipes, Agent: agent})
			if err != nil {
				t.Error(err)
				return
			}
			created[i] = img.Manifest.Created
		})
	}
	wg.Wait()
	for _, c := range created {
		if c != created[0] {
			t.Errorf("images of %v", created)
		}
	}
	if k, r := ran(t, counts, "kernel"), ran(t, counts, "default"); k != 1 || r != 1 {
		t.Errorf("recipes ran %d and %d times, expected once each", k, r)
	}
}

// Cancelling ends a build and everything that it started, and the next one starts clean.
func TestCancelledBuild(t *testing.T) {
	s := Open(t.TempDir())
	pidFile := filepath.Join(t.TempDir(), "pid")
	recipes, _ := fakeRecipes(t, "sleep 600 & echo $! >"+pidFile+"; echo started; wait\n", goodRoot)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.Build(ctx, BuildOptions{Name: "default", Recipes: recipes, Agent: fakeAgent(t, ""), Progress: func(e Event) {
		if e.Line == "started" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Build: %v, expected context.Canceled", err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	// It was killed before Build returned; only its reaping by init may still be under way.
	for deadline := time.Now().Add(5 * time.Minute); alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d of the build is still alive", pid)
		}
	}
	recipes, _ = fakeRecipes(t, goodKernel, goodRoot)
	if _, err := s.Build(t.Context(), BuildOptions{Name: "default", Recipes: recipes, Agent: fakeAgent(t, "")}); err != nil {
		t.Fatal(err)
	}
}

// alive says whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(b, ')')
	return i < 0 || i+2 >= len(b) || b[i+2] != 'Z' && b[i+2] != 'X'
}

// A builder that is killed at any moment leaves the old image or the new one, and the next build succeeds.
func TestKilledBuild(t *testing.T) {
	if os.Getenv("CARREL_TEST_BUILD") != "" {
		s := Open(os.Getenv("CARREL_TEST_BUILD"))
		_, err := s.Build(context.Background(), BuildOptions{Name: "default", Arch: os.Getenv("CARREL_TEST_ARCH"), Recipes: os.Getenv("CARREL_TEST_RECIPES"), Agent: os.Getenv("CARREL_TEST_AGENT"),
			Progress: func(e Event) { fmt.Printf("event %s %s\n", e.Stage, e.Line) }})
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	for _, arch := range []string{runtime.GOARCH, otherArch} {
		t.Run(arch, func(t *testing.T) { killedBuild(t, arch) })
	}
}

func killedBuild(t *testing.T, arch string) {
	s := Open(t.TempDir())
	recipes, _ := fakeRecipes(t, goodKernel, goodRoot)
	o := BuildOptions{Name: "default", Arch: arch, Recipes: recipes, Agent: fakeAgent(t, "old")}
	old, err := s.Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	recipes, _ = fakeRecipes(t, goodKernel+"echo 2 >>$out/vmlinuz\n", goodRoot+"echo 2 >>$out/root.erofs\n")
	o.Recipes, o.Agent = recipes, fakeAgent(t, "new")
	// Counted in events, so that the kill falls at another point of the build each time.
	killed := 0
	for at := 1; ; at++ {
		for _, kind := range []string{"kernel", "kernel-arm64"} {
			if err := os.RemoveAll(filepath.Join(s.cache, kind)); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledBuild$")
		cmd.Env = append(os.Environ(), "CARREL_TEST_BUILD="+s.cache, "CARREL_TEST_ARCH="+arch, "CARREL_TEST_RECIPES="+recipes, "CARREL_TEST_AGENT="+o.Agent)
		killer := &killAfter{left: at}
		cmd.Stdout, cmd.Stderr = killer, killer
		killer.kill = func() { _ = cmd.Process.Signal(syscall.SIGKILL) }
		err := cmd.Run()
		img, gerr := s.Get(t.Context(), "default")
		if gerr != nil {
			t.Fatalf("killed after event %d: %v", at, gerr)
		}
		if err == nil {
			if img.Manifest.Inputs == old.Manifest.Inputs {
				t.Fatalf("a build that ended well left the old image")
			}
			break
		}
		if killer.left > 0 {
			t.Fatalf("the build failed by itself: %v\n%s", err, killer.all.String())
		}
		killed++
		if at > 100 {
			t.Fatal("a hundred events and no end")
		}
	}
	if killed < 4 {
		t.Errorf("killed %d builds only", killed)
	}
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.cache, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// killAfter kills once it has seen so many lines.
type killAfter struct {
	left int
	kill func()
	all  bytes.Buffer
}

func (k *killAfter) Write(p []byte) (int, error) {
	k.all.Write(p)
	if n := bytes.Count(p, []byte("event ")); k.left > 0 {
		if k.left -= n; k.left <= 0 {
			k.kill()
		}
	}
	return len(p), nil
}

func TestEmbeddedRecipes(t *testing.T) {
	dir := t.TempDir()
	if err := extractRecipes(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"kernel/build", "kernel/config", "default/build", "default/packages", "default/node/npm/package-lock.json", "default/node/amd64/package-lock.json", "default/node/arm64/package-lock.json"} {
		if fi, err := os.Stat(filepath.Join(dir, f)); err != nil || fi.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	for _, f := range []string{"kernel/build", "default/build"} {
		if out, err := exec.CommandContext(t.Context(), "bash", "-n", filepath.Join(dir, f)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", f, err, out)
		}
	}
}

func TestPrune(t *testing.T) {
	s := Open(t.TempDir())
	recipes, _ := fakeRecipes(t, goodKernel, goodRoot)
	img, err := s.Build(t.Context(), BuildOptions{Name: "default", Recipes: recipes, Agent: fakeAgent(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]bool{ // path under the cache, and whether it stays
		"kernel/" + img.Manifest.Inputs.Kernel: true,
		"kernel/" + strings.Repeat("ab", 32):   false,
		"root/" + strings.Repeat("cd", 32):     false,
		"root/" + strings.Repeat("ef", 32):     true, // used lately
		"root/not-one-of-ours":                 true,
		"images/" + strings.Repeat("a", 31):    true,
	}
	old := time.Now().Add(-2 * keepUnused)
	for path := range entries {
		p := filepath.Join(s.cache, path)
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(path, "ef") {
			if err := os.Chtimes(p, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.prune(time.Now()) // one image cannot be read: nothing may go
	if _, err := os.Stat(filepath.Join(s.cache, "root", strings.Repeat("cd", 32))); err != nil {
		t.Errorf("pruned although an image cannot be read: %v", err)
	}
	if err := os.Remove(filepath.Join(s.cache, "images", strings.Repeat("a", 31))); err != nil {
		t.Fatal(err)
	}
	delete(entries, "images/"+strings.Repeat("a", 31))
	s.prune(time.Now())
	for path, stays := range entries {
		if _, err := os.Stat(filepath.Join(s.cache, path)); (err == nil) != stays {
			t.Errorf("%s: %v, expected to stay: %v", path, err, stays)
		}
	}
}
