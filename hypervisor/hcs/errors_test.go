package hcs

import (
	"errors"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
)

// told are the codes that users of HCS report most, and a word of the cause and
// of the cure that must reach them.
var told = []struct {
	code        HRESULT
	cause, cure string
}{
	{0x80370102, "virtualization is off in the firmware", "VirtualMachinePlatform"},
	{0xc0370102, "virtualization is off in the firmware", "VirtualMachinePlatform"},
	{0x80370109, "did not answer in time", "again"},
	{0x8037010d, "description", "update Windows"},
	{0x80370114, "not available", "vmcompute"},
	{0x8037011b, "may not use", "Hyper-V Administrators"},
	{0x8037011c, "kernel crashed", "logs"},
	{0x8037011e, "ended", "vmcompute"},
	{0x80070002, "not there", "image verify"},
	{0x80070003, "folder", "image verify"},
	{0x80070005, "denied", "Hyper-V Administrators"},
	{0x8007000e, "memory", "--memory"},
	{0x80070020, "in use", "carrel ls"},
	{0x80070057, "value", "CPUs"},
	{0x80070070, "full", "prune"},
	{0x8007007e, "library", "VirtualMachinePlatform"},
	{0x80070422, "disabled", "sc config vmcompute"},
	{0x80070424, "no Host Compute Service", "VirtualMachinePlatform"},
	{0x80070569, "sign in", "Log on as a service"},
	{0x800705aa, "resources", "--memory"},
	{0x800706ba, "cannot be reached", "vmcompute"},
	{0xc0351000, "does not run", "VirtualMachinePlatform"},
	{0xc03a001a, "compressed or encrypted", "compact /u"},
	{0xc03a0013, "size", "image"},
	{0xc03a001e, "another virtual machine", "carrel ls"},
}

func TestTold(t *testing.T) {
	for _, tc := range told {
		err := failed("start guest", &Failure{Call: "HcsStartComputeSystem", Result: tc.code})
		checkTold(t, err, tc.code, tc.cause, tc.cure)
	}
}

func checkTold(t testing.TB, err error, code HRESULT, cause, cure string) {
	t.Helper()
	var he *hypervisor.Error
	if !errors.As(err, &he) {
		t.Errorf("%v: %v is no driver's error", code, err)
		return
	}
	if !strings.Contains(he.Err.Error(), cause) || !strings.Contains(he.Err.Error(), code.String()) {
		t.Errorf("%v: %v, want %q", code, he.Err, cause)
	}
	if !strings.Contains(he.Cure, cure) {
		t.Errorf("%v: cure %q, want %q", code, he.Cure, cure)
	}
}

// TestMeanings holds each meaning to what a user can use.
func TestMeanings(t *testing.T) {
	for code, m := range meanings {
		if !code.Failed() {
			t.Errorf("%v is no failure", code)
		}
		if code.known() != code {
			t.Errorf("%v is never looked up", code)
		}
		if m.cause == "" || m.cure == "" || strings.Contains(m.cause, "not available") && code != 0x80370114 {
			t.Errorf("%v: %+v", code, m)
		}
	}
}

func TestUnknown(t *testing.T) {
	f := &Failure{Call: "HcsCreateComputeSystem", Result: 0x88990011, Detail: "words"}
	if s := f.Error(); s != "HcsCreateComputeSystem: 0x88990011, which Carrel has no explanation for; Windows says: words" {
		t.Error(s)
	}
	if s := f.Cure(); !strings.Contains(s, "certutil -error 0x88990011") {
		t.Error(s)
	}
	if err := failed("x", errors.New("y")); err.Error() != "x: y" {
		t.Error(err)
	}
}

func TestDetail(t *testing.T) {
	for document, want := range map[string]string{
		"":                                   "",
		"no JSON":                            "",
		`{"Error":-1}`:                       "",
		`{"ErrorMessage":"a"}`:               "a",
		`{"ErrorMessage":[1]}`:               "",
		`{"ErrorMessage":"\u001b[31mred\n"}`: `\u001b[31mred\u000a`,
		`{"ErrorMessage":"a","ErrorEvents":[{"Message":"b"},{"Message":"c"}]}`: "a b c",
	} {
		if got := detail(document); got != want {
			t.Errorf("%s: %q, want %q", document, got, want)
		}
	}
	long := detail(`{"ErrorMessage":"` + strings.Repeat("x", 100_000) + `"}`)
	if len(long) > detailMax+10 {
		t.Errorf("%d bytes", len(long))
	}
}
