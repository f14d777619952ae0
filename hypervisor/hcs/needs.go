package hcs

import "fmt"

// Finding is one thing that a guest needs of this Windows, and whether it is
// there. Doctor shows it.
type Finding struct {
	// Check is a stable word: "hypervisor".
	Check string
	Level Level
	// Text says what was found, Cure what would mend it.
	Text, Cure string
}

// Level is how bad a finding is.
type Level int

// Levels.
const (
	Good Level = iota
	Note
	Bad
)

// Facts are what was found out about a Windows.
type Facts struct {
	Build uint16
	// Edition is its EditionID: "Core" is Windows Home, "Professional" Pro.
	Edition string
	// Library is the error of loading computecore.dll, nil where it is there.
	Library error
	// Service is that of the Host Compute Service.
	Service ServiceState
	// Hypervisor says that Windows' own runs, as the processor's CPUID tells.
	// An ARM64 processor does not: there it is unknown.
	Hypervisor, HypervisorUnknown bool
	// Virtualization says that the firmware lets the processor virtualize. It is
	// unknown, and false, where a hypervisor runs.
	Virtualization bool
	// User is the account, "PC\ann"; Elevated that its token is an
	// administrator's, and Group that it holds Hyper-V Administrators.
	User            string
	Elevated, Group bool
	// Account says that it is a service's own (SYSTEM, LOCAL SERVICE, NETWORK
	// SERVICE): such a keeper has no user's folders, keys or desktop.
	Account bool
	// Asked is what the service answers to a harmless question, nil where it answers.
	Asked error
}

// ServiceState is that of a Windows service.
type ServiceState int

// States of a service.
const (
	ServiceUnknown ServiceState = iota
	ServiceMissing
	ServiceDisabled
	ServiceStopped
	ServiceRunning
)

// Needs judges the facts, in the order in which they depend on each other. Each
// finding stands for itself: none says "not available" for another's reason.
func Needs(f Facts) (found []Finding) {
	add := func(check string, level Level, text, cure string) {
		found = append(found, Finding{check, level, text, cure})
	}
	switch {
	case f.Build < MinBuild:
		add("windows", Bad, fmt.Sprintf("Windows build %d is older than %d (Windows 10 2004)", f.Build, MinBuild), "update Windows")
	default:
		v := SchemaVersion(f.Build)
		add("windows", Good, fmt.Sprintf("Windows build %d, edition %s; guests are described in schema %d.%d", f.Build, f.Edition, v.Major, v.Minor), "")
	}
	if f.Edition == "Core" || f.Edition == "CoreSingleLanguage" {
		add("edition", Note, "this is Windows Home: it has no Hyper-V Manager, and what Carrel needs is the feature Virtual Machine Platform, which it has", "")
	}
	switch {
	case f.Hypervisor:
		add("hypervisor", Good, "a hypervisor runs", "")
	case f.Virtualization:
		add("hypervisor", Bad, "the processor may virtualize, and Windows started without its hypervisor", cureHypervisor)
	case f.HypervisorUnknown:
		add("hypervisor", Note, "whether a hypervisor runs cannot be seen on this processor", "")
	default:
		add("hypervisor", Bad, "no hypervisor runs, and virtualization is off in the firmware or the processor has none", cureHypervisor)
	}
	if f.Library != nil {
		add("computecore", Bad, "computecore.dll cannot be used: "+f.Library.Error(), cureHypervisor)
	} else {
		add("computecore", Good, "computecore.dll has every function that is needed", "")
	}
	switch f.Service {
	case ServiceMissing:
		add("vmcompute", Bad, "there is no Host Compute Service", cureHypervisor)
	case ServiceDisabled:
		add("vmcompute", Bad, "the Host Compute Service is disabled", cureService)
	case ServiceUnknown:
		add("vmcompute", Note, "the state of the Host Compute Service is unknown", "`sc query vmcompute`")
	case ServiceStopped:
		add("vmcompute", Good, "the Host Compute Service is there; it starts when it is asked", "")
	case ServiceRunning:
		add("vmcompute", Good, "the Host Compute Service runs", "")
	}
	switch {
	case f.Account:
		add("account", Bad, f.User+" is a service's own account: a daemon there has no user's folders, keychain or desktop", "run the daemon as the user, with `carrel daemon install`")
	case f.Group:
		add("account", Good, f.User+" is in the group Hyper-V Administrators", "")
	case f.Elevated:
		add("account", Note, f.User+" runs with an administrator's rights, which are more than Carrel needs", cureGroup)
	default:
		add("account", Bad, f.User+" is not in the group Hyper-V Administrators, whose members may make virtual machines", cureGroup)
	}
	if f.Library == nil && f.Asked != nil {
		cure := "carrel doctor again after the other findings are mended"
		if h, ok := f.Asked.(*Failure); ok {
			cure = h.Cure()
		}
		add("hcs", Bad, "the Host Compute Service does not answer: "+f.Asked.Error(), cure)
	} else if f.Library == nil {
		add("hcs", Good, "the Host Compute Service answers", "")
	}
	return found
}
