package doctor

import (
	"errors"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// ReadWindows gathers what this Windows says; whether a driver is there is the
// caller's. dirs are the folders that hold disks. It was compiled for Windows
// and never ran there.
func ReadWindows(driver bool, dirs ...string) Windows {
	v := windows.RtlGetVersion()
	w := Windows{Build: v.BuildNumber, Arch: runtime.GOARCH, Driver: driver}
	if k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion`, registry.QUERY_VALUE); err == nil {
		w.Edition, _, _ = k.GetStringValue("EditionID")
		ubr, _, _ := k.GetIntegerValue("UBR")
		w.Revision = uint32(ubr)
		k.Close()
	}
	if k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Control\FileSystem`, registry.QUERY_VALUE); err == nil {
		n, _, _ := k.GetIntegerValue("LongPathsEnabled")
		w.LongPaths = n == 1
		k.Close()
	}
	// https://learn.microsoft.com/windows/win32/api/processthreadsapi/nf-processthreadsapi-isprocessorfeaturepresent
	const virtFirmwareEnabled = 21
	kernel32 := windows.NewLazySystemDLL("kernel32.dll")
	if p := kernel32.NewProc("IsProcessorFeaturePresent"); p.Find() == nil {
		on, _, _ := p.Call(virtFirmwareEnabled)
		w.Firmware = on != 0
	}
	w.Hypervisor = hypervisorPresent()
	core := windows.NewLazySystemDLL("computecore.dll")
	w.ComputeCore = core.Load() == nil
	w.Compute = readService("vmcompute")
	token := windows.GetCurrentProcessToken()
	w.Elevated = token.IsElevated()
	if sid, err := windows.CreateWellKnownSid(windows.WinBuiltinHyperVAdminsSid); err == nil {
		w.HypervAdmin, _ = windows.Token(0).IsMember(sid)
	}
	if w.ComputeCore && w.Compute.Exists {
		w.HCS = listMachines(core)
	}
	for _, dir := range dirs {
		w.Folders = append(w.Folders, readFolder(dir))
	}
	return w
}

// hypervisorPresent asks the processor, which answers under a hypervisor, the
// host's own system included; nil where it cannot be asked so.
func hypervisorPresent() *bool {
	if runtime.GOARCH != "amd64" {
		return nil
	}
	on := cpuid.CPU.Supports(cpuid.HYPERVISOR)
	return &on
}

func readService(name string) (c Compute) {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		c.Trouble = "OpenSCManager: " + err.Error()
		return c
	}
	defer windows.CloseServiceHandle(m)
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		c.Trouble = err.Error()
		return c
	}
	s, err := windows.OpenService(m, p, windows.SERVICE_QUERY_CONFIG)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return c
	}
	if err != nil {
		c.Trouble = "OpenService: " + err.Error()
		return c
	}
	defer windows.CloseServiceHandle(s)
	c.Exists = true
	var need uint32
	var buf [8 << 10]byte // the most that QueryServiceConfig ever needs
	config := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buf[0]))
	if err := windows.QueryServiceConfig(s, config, uint32(len(buf)), &need); err == nil {
		c.Disabled = config.StartType == windows.SERVICE_DISABLED
	}
	return c
}

// listMachines has the Host Compute Service list its machines, which needs what
// making one needs, and returns the HRESULT; nil where it cannot be called.
func listMachines(core *windows.LazyDLL) *uint32 {
	create, enumerate := core.NewProc("HcsCreateOperation"), core.NewProc("HcsEnumerateComputeSystems")
	wait, end := core.NewProc("HcsWaitForOperationResult"), core.NewProc("HcsCloseOperation")
	for _, p := range []*windows.LazyProc{create, enumerate, wait, end} {
		if p.Find() != nil {
			return nil
		}
	}
	op, _, _ := create.Call(0, 0)
	if op == 0 {
		return nil
	}
	defer end.Call(op)
	const ms = 30_000
	hr, _, _ := enumerate.Call(0, op)
	if int32(hr) >= 0 {
		var doc *uint16
		hr, _, _ = wait.Call(op, ms, uintptr(unsafe.Pointer(&doc)))
		if doc != nil {
			windows.LocalFree(windows.Handle(unsafe.Pointer(doc)))
		}
	}
	n := uint32(hr)
	if int32(n) >= 0 {
		n = 0 // several successes are told apart, not by us
	}
	return &n
}

func readFolder(dir string) Folder {
	f := Folder{Dir: dir}
	fail := func(err error) Folder {
		f.Trouble = err.Error()
		return f
	}
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return fail(err)
	}
	a, err := windows.GetFileAttributes(p)
	if err != nil {
		return fail(err)
	}
	f.Compressed, f.Encrypted = a&windows.FILE_ATTRIBUTE_COMPRESSED != 0, a&windows.FILE_ATTRIBUTE_ENCRYPTED != 0
	root, err := windows.UTF16PtrFromString(filepath.VolumeName(dir) + `\`)
	if err != nil {
		return fail(err)
	}
	var name [windows.MAX_PATH + 1]uint16
	if err := windows.GetVolumeInformation(root, nil, 0, nil, nil, nil, &name[0], uint32(len(name))); err != nil {
		return fail(err)
	}
	f.Volume = windows.UTF16ToString(name[:])
	return f
}
