package images

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// These tests are about the kernel's table of who runs which programs (binfmt_misc), of this machine and of a user
// namespace. The machine's own they leave alone: what plays it is that of a namespace around them.

// What makes a namespace a machine of another kind; both lines are for bash.
const (
	untold       = "[ ! -d " + machineTable + " ] || mount -t tmpfs tmpfs " + machineTable + "\n" // nobody told it of other programs
	noNamespaces = "echo 0 >/proc/sys/user/max_user_namespaces\n"
)

// told makes it one that runs the other architecture's programs: any emulator will do, since none runs.
var told = "mount -t binfmt_misc binfmt_misc " + machineTable + "\n" +
	"echo ':qemu-" + kernelNames[otherArch] + ":E::carreltest::/bin/true:F' >" + machineTable + "/register\n"

// tables says whether a user namespace may have a table here (Linux 6.7), and whether all of this machine runs the
// other architecture's programs. One of them is needed, and both are ordinary.
func tables(t *testing.T) (own, all bool) {
	t.Helper()
	if testing.Short() {
		t.Skip("this needs Linux 6.7 and what scripts/setup installs: make test runs it")
	}
	all = hostwide(otherArch) // first: systemd mounts it when somebody looks
	out, err := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "binfmt_misc", "binfmt_misc", t.TempDir()).CombinedOutput()
	if own = err == nil; !own && !all {
		t.Fatalf("no program for %s runs here: a table in a user namespace: %v: %s", otherArch, err, out)
	}
	t.Logf("a user namespace may have a table: %v; all of this machine runs programs for %s: %v", own, otherArch, all)
	return own, all
}

// inside says as which run of the test this is, "" in the first; again makes one, as root of a user namespace in
// which script ran.
func inside() string { return os.Getenv("CARREL_TEST_INSIDE") }

func again(t *testing.T, run, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", script+`exec "$0" "$@"`, os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "CARREL_TEST_INSIDE="+run)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		if err := apart(cmd.SysProcAttr); err != nil {
			t.Fatal(err)
		}
	} else {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%s: %v\n%s", run, err, out)
	}
}

// inUsers has a recipe say in which user namespace it runs.
const inUsers = "echo namespace: $(readlink /proc/self/ns/user)\n"

// builds makes an image for the other architecture with that recipe for its root file system, and returns all that the
// build said, and whether the recipe ran in a user namespace of its own.
func builds(t *testing.T, root string) (said string, own bool, err error) {
	t.Helper()
	recipes, counts := fakeRecipes(t, inUsers+archKernel, inUsers+root+archRoot)
	var b strings.Builder
	_, err = Open(t.TempDir()).Build(t.Context(), BuildOptions{Name: "x", Arch: otherArch, Recipes: recipes, Agent: fakeAgent(t, "agent"),
		Progress: func(e Event) { fmt.Fprintln(&b, e.Line) }})
	said = b.String()
	here, lerr := os.Readlink("/proc/self/ns/user")
	if lerr != nil {
		t.Fatal(lerr)
	}
	all := regexp.MustCompile(`(?m)^namespace: (user:.*)$`).FindAllStringSubmatch(said, -1)
	if len(all) == 0 || all[0][1] != here {
		t.Fatalf("the kernel's recipe did not run in this namespace, %s: %s (%v)", here, said, err)
	}
	if n := ran(t, counts, "default"); n != len(all)-1 || n == 0 && err == nil {
		t.Fatalf("the recipe ran %d times: %s (%v)", n, said, err)
	}
	return said, len(all) > 1 && all[1][1] != here, err
}

// What a recipe tells its kernel about another architecture's programs, the rest of the machine does not hear of.
func TestOwnTable(t *testing.T) {
	own, all := tables(t)
	script := `mount -t binfmt_misc binfmt_misc $out; echo ":carrel-test:E::carreltest::/bin/true:" >$out/register; ` +
		`printf x >$out.carreltest; chmod 755 $out.carreltest; $out.carreltest; ls $out; umount $out`
	switch {
	case inside() != "":
	case !own:
		if _, apart, err := builds(t, ""); err != nil || apart {
			t.Errorf("where all of the machine runs them: %v, in a namespace of its own: %v", err, apart)
		}
		return
	case os.Geteuid() == 0:
		again(t, "a machine", "mount -t binfmt_misc binfmt_misc "+machineTable+"\n")
		return
	default: // who is not root gets the namespace from mmdebstrap, here from unshare
		said, apart, err := builds(t, "export out\nunshare --user --map-root-user --mount sh -ec '"+script+"'\n")
		if err != nil || apart || !strings.Contains(said, "carrel-test") {
			t.Errorf("as a user: %v, in a namespace of our making: %v: %s", err, apart, said)
		}
		if _, err := os.Stat(filepath.Join(machineTable, "carrel-test")); all && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the entry is the machine's: %v", err)
		}
		return
	}
	said, apart, err := builds(t, script+"\n")
	if err != nil || !strings.Contains(said, "carrel-test") {
		t.Fatalf("the build's own table has no entry: %v: %s", err, said)
	}
	if !apart {
		t.Error("the recipe ran in the machine's own user namespace")
	}
	if _, err := os.Stat(filepath.Join(machineTable, "carrel-test")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the entry is the machine's: %v", err)
	}
	if err := os.WriteFile(filepath.Join(machineTable, "register"), []byte(":carrel-control:E::carrelcontrol::/bin/true:"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(machineTable, "carrel-control")); err != nil {
		t.Errorf("the control: what is the machine's is not seen: %v", err)
	}
}

// Root that may have no user namespace builds the other architecture's kernel all the same, for which none is needed. It
// is told what would do for the rest, and builds that too where all of the machine runs such programs.
func TestNoNamespace(t *testing.T) {
	switch inside() {
	case "refused":
		_, _, err := builds(t, "")
		if err == nil {
			t.Fatal("the root file system was built")
		}
		for _, want := range []string{"programs for " + otherArch + " do not run here: ", unix.ENOSPC.Error(), "apt-get install qemu-user-static binfmt-support"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in: %v", want, err)
			}
		}
	case "told":
		if _, apart, err := builds(t, ""); err != nil || apart {
			t.Errorf("%v, in a namespace of its own: %v", err, apart)
		}
	default:
		own, _ := tables(t)
		again(t, "refused", untold+noNamespaces)
		if own {
			again(t, "told", told+noNamespaces)
		} else { // as this machine is
			again(t, "told", noNamespaces)
		}
	}
}

// Where the kernel gives the build no table of its own, the recipe says so before it fetches anything: which kernel it
// is, and what would do. It asks for none where all of the machine runs such programs.
func TestNoTable(t *testing.T) {
	own, _ := tables(t)
	dir := t.TempDir()
	if err := extractRecipes(dir); err != nil {
		t.Fatal(err)
	}
	build := filepath.Join(dir, "default", "build")
	if out, err := exec.CommandContext(t.Context(), "bash", build, "--inputs", otherArch).CombinedOutput(); err != nil {
		t.Fatalf("the control: %v\n%s", err, out)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	refused := []string{"programs for " + otherArch + " do not run here: ", "Linux " + unix.ByteSliceToString(u.Release[:]), "6.7"}
	type machine struct {
		script, arch string
		want         []string
	}
	machines := map[string]machine{
		"no namespaces":                {untold + noNamespaces, otherArch, append(refused, "here: unshare")},
		"no namespaces, and its own":   {untold + noNamespaces, runtime.GOARCH, nil},
		"no namespaces, but all told":  {told + noNamespaces, otherArch, nil},
		"namespaces that have a table": {untold, otherArch, nil},
	}
	if !own { // such machines cannot be made of this one, which is one of the third kind
		machines["no namespaces, but all told"] = machine{noNamespaces, otherArch, nil}
		machines["namespaces that have a table"] = machine{untold, otherArch, refused}
	}
	for name, m := range machines {
		out, err := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--mount", "bash", "-ec", m.script+`exec bash "$0" --inputs "$1"`, build, m.arch).CombinedOutput()
		if (err != nil) != (m.want != nil) {
			t.Errorf("%s: %v:\n%s", name, err, out)
		}
		for _, want := range m.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %v, expected %q:\n%s", name, err, want, out)
			}
		}
	}
}
