package hcs

import (
	"errors"
	"runtime"
	"strings"

	"github.com/Microsoft/hcsshim/osversion"
	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// Findings are what this Windows has and lacks for guests.
func Findings() []Finding { return Needs(facts()) }

// processorVirtualization is PF_VIRT_FIRMWARE_ENABLED of winnt.h.
const processorVirtualization = 21

func facts() Facts {
	f := Facts{Build: osversion.Build(), Edition: edition(), Library: library(), Service: service("vmcompute")}
	// Windows itself is a guest of its hypervisor where that runs.
	f.Hypervisor = cpuid.CPU.HypervisorVendorID == cpuid.MSVM
	f.HypervisorUnknown = runtime.GOARCH != AMD64
	feature := windows.NewLazySystemDLL("kernel32.dll").NewProc("IsProcessorFeaturePresent")
	if feature.Find() == nil {
		r, _, _ := feature.Call(processorVirtualization)
		f.Virtualization = r != 0
	}
	f.account()
	if f.Library == nil {
		_, f.Asked = ask()
	}
	return f
}

func edition() string {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion`, registry.QUERY_VALUE)
	if err != nil {
		return "unknown"
	}
	defer k.Close()
	name, _, err := k.GetStringValue("EditionID")
	if err != nil {
		return "unknown"
	}
	return name
}

// service asks the service manager for what anybody may know.
func service(name string) ServiceState {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return ServiceUnknown
	}
	defer windows.CloseServiceHandle(m)
	wname, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return ServiceUnknown
	}
	s, err := windows.OpenService(m, wname, windows.SERVICE_QUERY_STATUS)
	switch {
	case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST):
		return ServiceMissing
	case err != nil:
		return ServiceUnknown
	}
	defer windows.CloseServiceHandle(s)
	if disabled(name) {
		return ServiceDisabled
	}
	var status windows.SERVICE_STATUS
	switch err := windows.QueryServiceStatus(s, &status); {
	case err != nil:
		return ServiceUnknown
	case status.CurrentState == windows.SERVICE_RUNNING:
		return ServiceRunning
	}
	return ServiceStopped
}

func disabled(name string) bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+name, registry.QUERY_VALUE)
	if err != nil {
		return false
	}
	defer k.Close()
	start, _, err := k.GetIntegerValue("Start")
	return err == nil && start == windows.SERVICE_DISABLED
}

// account looks at the token of this process.
func (f *Facts) account() {
	token := windows.GetCurrentProcessToken()
	f.Elevated = token.IsElevated()
	u, err := token.GetTokenUser()
	if err != nil {
		f.User = "this user"
		return
	}
	f.User = u.User.Sid.String()
	if name, domain, _, err := u.User.Sid.LookupAccount(""); err == nil {
		f.User = strings.TrimPrefix(domain+`\`+name, `\`)
	}
	for _, kind := range []windows.WELL_KNOWN_SID_TYPE{windows.WinLocalSystemSid, windows.WinLocalServiceSid, windows.WinNetworkServiceSid} {
		f.Account = f.Account || u.User.Sid.IsWellKnown(kind)
	}
	// S-1-5-32-578 is Hyper-V Administrators.
	if group, err := windows.CreateWellKnownSid(windows.WinBuiltinHyperVAdminsSid); err == nil {
		f.Group, _ = windows.Token(0).IsMember(group)
	}
}
