package hcs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/hypervisor"
)

// create makes a guest with the fake, or says why not.
func (f *fake) create(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	return testDriver(newCarrier(f.t)).Create(ctx, cfg, hypervisor.Handlers{})
}

// clean fails the test for handles and files that were left.
func (f *fake) clean(cfg hypervisor.Config) {
	f.t.Helper()
	if l := left(); l != "" {
		f.t.Error(l)
	}
	if d, err := os.ReadDir(cfg.Dir); err != nil || len(d) != 0 {
		f.t.Errorf("files are left in the guest's folder: %v, %v", d, err)
	}
}

// TestRecorded is one guest from Create to Close, as the service sees it.
func TestRecorded(t *testing.T) {
	f, cfg := newFake(t), testConfig(t)
	vm, err := f.create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	id := vm.(*VM).id
	got, err := os.ReadFile(f.dir + `\` + id + ".json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Document(cfg, Machine{
		ID: id, Arch: AMD64, Build: build, User: vm.(*VM).user, Console: ConsolePipe(id), Root: cfg.Dir + `\root.vhd`, Scratch: cfg.Scratch, Volumes: []string{cfg.Volumes[0].Path},
	})
	if err != nil || string(got) != string(want) {
		t.Errorf("the service got %s, want %s, %v", got, want, err)
	}
	for range 2 {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
	f.clean(cfg)
	want2 := []string{
		"HcsGrantVmAccess " + cfg.Dir + `\root.vhd`, "HcsGrantVmAccess " + cfg.Scratch, "HcsGrantVmAccess " + cfg.Volumes[0].Path, "HcsGrantVmAccess " + cfg.Kernel, "HcsGrantVmAccess " + cfg.Initrd,
		"HcsCreateComputeSystem " + id, "HcsGetComputeSystemProperties " + id,
		"HcsTerminateComputeSystem " + id, "HcsCloseComputeSystem " + id,
		"HcsRevokeVmAccess " + cfg.Dir + `\root.vhd`, "HcsRevokeVmAccess " + cfg.Scratch, "HcsRevokeVmAccess " + cfg.Volumes[0].Path, "HcsRevokeVmAccess " + cfg.Kernel, "HcsRevokeVmAccess " + cfg.Initrd,
	}
	if got, want := strings.Join(f.calls(), "\n"), strings.Join(want2, "\n"); got != want {
		t.Errorf("calls:\n%s\nwant:\n%s", got, want)
	}
}

// TestFailures has every code come from the service, from the function itself and
// from its operation, at Create and at Start.
func TestFailures(t *testing.T) {
	f, cfg := newFake(t), testConfig(t)
	driver := testDriver(newCarrier(t))
	for _, how := range []string{"call", "wait"} {
		for _, tc := range told {
			f.script(fmt.Sprintf("HcsCreateComputeSystem %s %x from the service", how, uint32(tc.code)))
			vm, err := driver.Create(t.Context(), cfg, hypervisor.Handlers{})
			if err == nil {
				vm.Close()
				t.Errorf("%s %v: created", how, tc.code)
				continue
			}
			checkTold(t, err, tc.code, tc.cause, tc.cure)
			if said := strings.Contains(err.Error(), "Windows says: from the service"); said != (how == "wait") {
				t.Errorf("the service's own words: %v", err)
			}
			f.clean(cfg)
		}
	}
	f.script("HcsStartComputeSystem wait 80070569 policy")
	vm, err := driver.Create(t.Context(), cfg, hypervisor.Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	checkTold(t, vm.Start(t.Context()), 0x80070569, "sign in", "Log on as a service")
	if _, err := vm.Dial(t.Context(), 64); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("dial after a failed start: %v", err)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	f.clean(cfg)
}

// TestEachStep has each step of Create fail; nothing may be left of it.
func TestEachStep(t *testing.T) {
	for _, step := range []string{
		"HcsGrantVmAccess call 80070005", "HcsCreateComputeSystem call 80370102",
		"HcsGetComputeSystemProperties wait 8037011e", "HcsGetComputeSystemProperties call 80070005",
		`HcsGetComputeSystemProperties answer 0 {"RuntimeId":"00000000-0000-0000-0000-000000000000"}`,
		`HcsGetComputeSystemProperties answer 0 {"RuntimeId":"90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"}`,
		`HcsGetComputeSystemProperties answer 0 {"RuntimeId":"x"}`, `HcsGetComputeSystemProperties answer 0 [`,
	} {
		t.Run(step, func(t *testing.T) {
			f, cfg := newFake(t), testConfig(t)
			f.script(step)
			if vm, err := f.create(t.Context(), cfg); err == nil {
				vm.Close()
				t.Error("created")
			}
			f.clean(cfg)
		})
	}
	t.Run("control", func(t *testing.T) {
		f, cfg := newFake(t), testConfig(t)
		vm, err := f.create(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		vm.Close()
		f.clean(cfg)
	})
}

// TestSlow ends the context of an operation that does not end by itself: one that
// can be cancelled, and one that cannot and is closed when its patience is over.
func TestSlow(t *testing.T) {
	f := newFake(t)
	f.script("HcsCreateComputeSystem slow 0", "HcsPauseComputeSystem stuck 0")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	s := &system{}
	begun := make(chan struct{})
	go func() {
		<-begun
		cancel(why)
	}()
	_, err := s.run(ctx, "HcsPauseComputeSystem", time.Hour, func(o uintptr) error {
		close(begun)
		return nil // an operation that nobody ends before it is cancelled
	})
	if !errors.Is(err, why) {
		t.Errorf("slow: %v", err)
	}
	s.close() // waits for it: an hour, if it were not cancelled
	if n := f.count("HcsCancelOperation"); n != 1 {
		t.Errorf("cancelled %d times", n)
	}
	cfg := testConfig(t)
	ctx, cancel = context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := f.create(ctx, cfg); !errors.Is(err, why) {
		t.Errorf("created under an ended context: %v", err)
	}
	f.clean(cfg)

	// The bound of the operation itself.
	s = &system{}
	_, err = s.run(t.Context(), "HcsPauseComputeSystem", 50*time.Millisecond, func(uintptr) error { return nil })
	var failure *Failure
	if !errors.As(err, &failure) || failure.Result != 0x80370118 {
		t.Errorf("late: %v", err)
	}
	s.close()
	f.clean(cfg)
}

// TestGone has the guest end in ways that are not its own.
func TestGone(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"service":   {"HcsWaitForComputeSystemExit call 8037011e", "the Host Compute Service ended"},
		"call":      {"HcsWaitForComputeSystemExit call 800706ba", "the guest is lost"},
		"status":    {`HcsWaitForComputeSystemExit answer 0 {"Status":-1070137075,"ExitType":"UnexpectedExit"}`, "0xc037010d"},
		"type":      {`HcsWaitForComputeSystemExit answer 0 {"Status":0,"ExitType":"Odd"}`, `unexpectedly ("Odd")`},
		"no answer": {`HcsWaitForComputeSystemExit answer 0 [`, "does not say how"},
	} {
		t.Run(name, func(t *testing.T) {
			f, cfg := newFake(t), testConfig(t)
			f.script(tc.script)
			vm, err := f.create(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := vm.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			murder(t)
			var gone *hypervisor.GoneError
			if err := vm.Wait(); !errors.As(err, &gone) || !strings.Contains(gone.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
			f.clean(cfg)
		})
	}
}

// TestMissing has a library and a function that are not there. Neither panics.
func TestMissing(t *testing.T) {
	if err := library(); err != nil {
		t.Fatalf("the control: %v", err)
	}
	for _, p := range []*windows.LazyProc{computecore.NewProc("HcsOfTomorrow"), windows.NewLazySystemDLL("carrel-none.dll").NewProc("HcsCreateOperation")} {
		var f *Failure
		if err := call(p, 1, 2, 3); !errors.As(err, &f) || !f.Result.Failed() || f.Detail == "" {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// TestLongAnswer cuts an answer without an end at documentMax.
func TestLongAnswer(t *testing.T) {
	for _, n := range []int{0, 1, documentMax - 1, documentMax, documentMax + 100} {
		if got := take(local(t, strings.Repeat("x", n))); len(got) != min(n, documentMax) {
			t.Errorf("%d units of %d", len(got), n)
		}
	}
	if take(nil) != "" {
		t.Error("nothing is something")
	}
}

// TestCheck asks the service without making a guest.
func TestCheck(t *testing.T) {
	f := newFake(t)
	d := &Driver{build: build}
	if err := d.Check(); err != nil {
		t.Errorf("the control: %v", err)
	}
	f.script("HcsGetServiceProperties call 80070005")
	checkTold(t, d.Check(), 0x80070005, "denied", "Hyper-V Administrators")
	if err := (&Driver{build: MinBuild - 1}).Check(); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an old Windows: %v", err)
	}
	if d := New(); d.Name() != "hcs" || d.build == 0 || d.arch != AMD64 {
		t.Errorf("%+v", d)
	}
}
