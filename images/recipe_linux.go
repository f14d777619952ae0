package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a recipe says to us, on a line of its own: how far it is, and which tool it lacks.
var (
	stepLine    = regexp.MustCompile(`^carrel-step: (\d{1,9})/(\d{1,9}) (.*)$`)
	missingLine = regexp.MustCompile(`^carrel-missing: (.{1,100})$`)
)

const (
	maxLine   = 4096 // bytes of a child's line that are looked at
	tailLines = 15   // lines of a failed child's output that its error shows
)

// inputs asks the recipe what else decides its result: versions of sources, mostly.
func (b *builder) inputs(ctx context.Context, kind, dir string) (string, error) {
	var out bytes.Buffer
	lines := &lineWriter{}
	if err := b.bash(ctx, &syscall.SysProcAttr{}, dir, &out, lines, "--inputs"); err != nil {
		return "", b.failure(kind, "", lines, err)
	}
	return out.String(), nil
}

// run lets the recipe build into out. All that it prints goes to a log, and its last lines into the error.
func (b *builder) run(ctx context.Context, kind, dir, out string) error {
	logPath := filepath.Join(b.store.cache, "logs", kind+".log")
	if err := os.MkdirAll(filepath.Dir(logPath), 0o700); err != nil {
		return err
	}
	log, err := os.Create(logPath)
	if err != nil {
		return fmt.Errorf("%s: log: %w", kind, err)
	}
	defer log.Close()
	var done, total int64
	lines := &lineWriter{each: func(line string) {
		if m := stepLine.FindStringSubmatch(line); m != nil {
			done, _ = strconv.ParseInt(m[1], 10, 64)
			total, _ = strconv.ParseInt(m[2], 10, 64)
			total = max(total, done)
			line = m[3]
		}
		b.progress(Event{Stage: kind, Done: done, Total: total, Line: plain(line)})
	}}
	attr := &syscall.SysProcAttr{}
	own := kind == b.kind("root") && b.arch != runtime.GOARCH && os.Geteuid() == 0 && !hostwide(b.arch)
	if own {
		if err := apart(attr); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	start := time.Now()
	w := io.MultiWriter(log, lines)
	err = b.bash(ctx, attr, dir, w, w, out)
	if own && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) { // forbidden, none left, not in this kernel
		return fmt.Errorf("%s: programs for %s do not run here: the build gets no user namespace of its own: %w\n  "+
			"Build on a machine where it may have one, or let all of this one run them: apt-get install qemu-user-static binfmt-support", kind, b.arch, err)
	}
	if err != nil {
		return b.failure(kind, logPath, lines, err)
	}
	b.progress(Event{Stage: kind, Done: total, Total: total, Line: fmt.Sprintf("built in %.0f s", time.Since(start).Seconds())})
	return nil
}

// bash runs dir/build with its own process group, so that ending it ends what it started. The
// child inherits the store's lock: should we be killed, the next build starts only when the last
// process of this one is gone (their output then goes nowhere, which ends them soon). attr says in
// which namespaces it runs.
func (b *builder) bash(ctx context.Context, attr *syscall.SysProcAttr, dir string, stdout, stderr io.Writer, arg string) error {
	runtime.LockOSThread() // Pdeathsig is about the thread that forked (prctl(2), PR_SET_PDEATHSIG)
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "bash", filepath.Join(dir, "build"), arg, b.arch)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.ExtraFiles = []*os.File{b.lock}
	attr.Setpgid, attr.Pdeathsig = true, syscall.SIGKILL
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// What the kernel calls them, and where it says who runs their programs.
var (
	kernelNames = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}
	emulated    = regexp.MustCompile(`(?m)^flags: .*F`)
)

const machineTable = "/proc/sys/fs/binfmt_misc"

// hostwide is whether all of this machine runs programs of an architecture, with an emulator that was opened in
// advance. The recipe of the root file system asks the same way, and then makes no table.
func hostwide(arch string) bool {
	b, err := os.ReadFile(filepath.Join(machineTable, "qemu-"+kernelNames[arch]))
	return err == nil && emulated.Match(b)
}

// apart gives root's build for another architecture a user namespace with the same users, in which binfmt_misc may
// have a table of its own: the first namespace's would be the whole machine's. Who is not root needs none from us,
// as mmdebstrap makes one then. The processes' namespace goes with it, because /proc can be mounted only by who has both.
func apart(attr *syscall.SysProcAttr) error {
	users, err := readIDs("/proc/self/uid_map")
	if err != nil {
		return err
	}
	groups, err := readIDs("/proc/self/gid_map")
	if err != nil {
		return err
	}
	attr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = users, groups, true
	return nil
}

// readIDs reads which users or groups there are in this namespace, each mapped to itself.
func readIDs(file string) ([]syscall.SysProcIDMap, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []syscall.SysProcIDMap
	for line := range strings.Lines(string(b)) {
		var first, outside, count int
		if _, err := fmt.Sscan(line, &first, &outside, &count); err != nil {
			return nil, fmt.Errorf("%s: %.80q: %w", file, line, err)
		}
		all = append(all, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: count})
	}
	return all, nil
}

func (b *builder) failure(kind, logPath string, lines *lineWriter, err error) error {
	lines.flush()
	if len(lines.missing) > 0 {
		return toolError(kind, lines.missing)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return toolError(kind, []string{"bash"})
	}
	tail := strings.Join(lines.tail, "\n  ")
	if logPath != "" {
		return fmt.Errorf("%s: %w (all of its output: %s)\n  %s", kind, err, logPath, tail)
	}
	return fmt.Errorf("%s: %w\n  %s", kind, err, tail)
}

// toolError names tools that a recipe wants and the host lacks.
func toolError(stage string, tools []string) error {
	return fmt.Errorf("build %s: %w: %s (scripts/setup installs it)", stage, ErrTool, strings.Join(tools, ", "))
}

// lineWriter cuts a child's output in lines, keeps the last ones and passes each on. exec writes
// stdout and stderr to the same writer from one goroutine; the zero lineWriter only remembers.
type lineWriter struct {
	each    func(string)
	part    []byte
	tail    []string
	missing []string
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexAny(p, "\n\r")
		end := i
		if i < 0 {
			end = len(p)
		}
		if room := maxLine - len(w.part); room > 0 {
			w.part = append(w.part, p[:min(end, room)]...)
		}
		if i < 0 {
			break
		}
		w.flush()
		p = p[i+1:]
	}
	return n, nil
}

func (w *lineWriter) flush() {
	line := string(w.part)
	w.part = w.part[:0]
	if strings.TrimSpace(line) == "" {
		return
	}
	if m := missingLine.FindStringSubmatch(line); m != nil && len(w.missing) < 50 {
		w.missing = append(w.missing, plain(m[1]))
	}
	w.tail = append(w.tail, plain(line))
	if len(w.tail) > tailLines {
		w.tail = w.tail[1:]
	}
	if w.each != nil {
		w.each(line)
	}
}
