package qemu

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/agent/selftest"
	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest"
)

// console keeps what a guest prints.
type console struct {
	mu sync.Mutex
	b  strings.Builder
}

func (c *console) print(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b.Write(p)
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.b.String(), "\r", "")
}

// bootSelfTest boots the agent's self-test with more words for the kernel, and returns its table.
func bootSelfTest(t *testing.T, d *Driver, cfg hypervisor.Config, words ...string) string {
	t.Helper()
	cfg.Cmdline = append([]string{"carrel.selftest=1"}, words...)
	said := &console{}
	vm, err := d.Create(t.Context(), cfg, hypervisor.Handlers{Console: said.print})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { vm.Kill() })()
	if err := vm.Wait(); err != nil || ctx.Err() != nil {
		t.Fatalf("%v, %v; its console:\n%s", err, ctx.Err(), said.text())
	}
	return said.text()
}

// patience bounds a machine of a test, an emulated one of another architecture
// too. It is for what hangs, and no measure: a boot takes seconds.
const patience = 4 * time.Minute

// selfTest wants everything that a guest needs in its kernel, and a kernel that was told to leave
// things out to be found out.
func selfTest(t *testing.T, d *Driver, cfg hypervisor.Config) {
	t.Helper()
	table := bootSelfTest(t, d, cfg)
	if !strings.Contains(table, "\n"+selftest.Passed+"\n") {
		t.Errorf("the kernel %s lacks something:\n%s", cfg.Kernel, table)
	}
	table = bootSelfTest(t, d, cfg, "lsm=none", "cgroup_disable=memory", "ipv6.disable=1")
	if want := "\n" + selftest.Failed + " cgroup-memory landlock ipv6\n"; !strings.Contains(table, want) {
		t.Errorf("with Landlock, memory control and IPv6 switched off, there is no line %q:\n%s", want, table)
	}
}

// TestSelfTest runs before there is a root file system, with no rights given up.
func TestSelfTest(t *testing.T) {
	cfg := testConfig(t)
	cfg.Initrd = hypervisortest.Initrd(t, hypervisortest.Agent(t))
	selfTest(t, New(Options{Shim: []string{self(t), "confine"}, CacheDir: t.TempDir()}), cfg)
}
