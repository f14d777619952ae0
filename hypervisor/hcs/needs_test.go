package hcs

import (
	"errors"
	"strings"
	"testing"

	"github.com/Microsoft/hcsshim/osversion"
)

func goodFacts() Facts {
	return Facts{
		Build: osversion.V22H2Win11, Edition: "Professional", Hypervisor: true, Service: ServiceRunning, User: `PC\ann`, Group: true,
	}
}

// TestNeeds changes one fact at a time, and wants one finding changed.
func TestNeeds(t *testing.T) {
	for _, f := range Needs(goodFacts()) {
		if f.Level != Good || f.Cure != "" || f.Text == "" {
			t.Errorf("a good Windows: %+v", f)
		}
	}
	for name, tc := range map[string]struct {
		change     func(*Facts)
		check      string
		level      Level
		text, cure string
	}{
		"old":             {func(f *Facts) { f.Build = 18363 }, "windows", Bad, "older", "update"},
		"home":            {func(f *Facts) { f.Edition = "Core" }, "edition", Note, "Home", ""},
		"no hypervisor":   {func(f *Facts) { f.Hypervisor, f.Virtualization = false, true }, "hypervisor", Bad, "without its hypervisor", "bcdedit"},
		"firmware":        {func(f *Facts) { f.Hypervisor = false }, "hypervisor", Bad, "firmware", "VirtualMachinePlatform"},
		"not to be seen":  {func(f *Facts) { f.Hypervisor, f.HypervisorUnknown = false, true }, "hypervisor", Note, "cannot be seen", ""},
		"no library":      {func(f *Facts) { f.Library = errors.New("gone") }, "computecore", Bad, "gone", "VirtualMachinePlatform"},
		"no service":      {func(f *Facts) { f.Service = ServiceMissing }, "vmcompute", Bad, "no Host", "VirtualMachinePlatform"},
		"disabled":        {func(f *Facts) { f.Service = ServiceDisabled }, "vmcompute", Bad, "disabled", "sc config"},
		"unknown service": {func(f *Facts) { f.Service = ServiceUnknown }, "vmcompute", Note, "unknown", "sc query"},
		"stopped":         {func(f *Facts) { f.Service = ServiceStopped }, "vmcompute", Good, "starts when", ""},
		"a plain user":    {func(f *Facts) { f.Group = false }, "account", Bad, "Hyper-V Administrators", "localgroup"},
		"an elevated one": {func(f *Facts) { f.Group, f.Elevated = false, true }, "account", Note, "administrator", "localgroup"},
		"a service":       {func(f *Facts) { f.Account = true }, "account", Bad, "service's own", "daemon install"},
		"no answer":       {func(f *Facts) { f.Asked = &Failure{Call: "HcsGetServiceProperties", Result: 0x80070005} }, "hcs", Bad, "0x80070005", "localgroup"},
		"no code":         {func(f *Facts) { f.Asked = errors.New("odd") }, "hcs", Bad, "odd", "doctor"},
	} {
		f := goodFacts()
		tc.change(&f)
		found := 0
		for _, got := range Needs(f) {
			if got.Check != tc.check {
				if got.Level != Good {
					t.Errorf("%s: and %+v", name, got)
				}
				continue
			}
			found++
			if got.Level != tc.level || !strings.Contains(got.Text, tc.text) || !strings.Contains(got.Cure, tc.cure) {
				t.Errorf("%s: %+v", name, got)
			}
		}
		if found != 1 {
			t.Errorf("%s: %d findings", name, found)
		}
	}
}
