package client_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// repository is what the example agents mend.
func repository(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS("examples/repository")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestExampleAgent runs the example as a person does: yes to one host, no to the
// other, and yes or no to the changes.
func TestExampleAgent(t *testing.T) {
	o, err := real()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	bin := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.Command("go", "build", "-o", bin, "./examples/agent").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, apply := range []string{"n", "y"} {
		dir := repository(t)
		before, err := c.Guests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), bin, "--boundary", "process", dir)
		cmd.Env = append(os.Environ(), "CARREL_HOME="+o.Home, "PATH="+filepath.Dir(o.Daemon)+":"+os.Getenv("PATH"))
		cmd.Stdin = strings.NewReader("y\nn\n" + apply + "\n")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range []string{
			"* run [\"sh\" \"test.sh\"]\n  status 1\n", "* write sum.sh\n", `May the guest reach "docs.example", port 443, once?`,
			`May the guest reach "paste.example", port 443, once?`, "-echo $(($1 - $2))\n+echo $(($1 + $2))\n", "* done\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q is not in what it says:\n%s", want, &out)
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, "sum.sh"))
		if err != nil {
			t.Fatal(err)
		}
		if mended := string(b) == "echo $(($1 + $2))\n"; mended != (apply == "y") {
			t.Errorf("after %q the folder has %q\n%s", apply, b, &out)
		}
		// Its guest has gone, or stays for undo alone.
		gs, err := c.Guests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range gs[min(len(before), len(gs)):] {
			if _, err := c.Trace(t.Context(), g.Name, true); err != nil && client.CodeOf(err) != "not_found" {
				t.Error(err)
			}
			if now, err := c.Guest(t.Context(), g.Name); err == nil && now.Kept != api.GuestKept_GUEST_KEPT_UNDO {
				t.Errorf("guest %s is still there: %v", g.Name, now)
			} else if err != nil && client.CodeOf(err) != "not_found" {
				t.Error(errors.Join(err, err))
			}
		}
	}
}
