package vz

// Codes of VZErrorDomain that a user meets; translate_darwin.go holds them against
// the module's.
const (
	codeInternal      = 1
	codeConfiguration = 2
	codeDiskImage     = 5
	codeLimit         = 6
	codeNoSpace       = 8
	codeSave          = 11
	codeRestore       = 12
)

// errorDomain is that of the framework's own errors.
const errorDomain = "VZErrorDomain"

// cure is what would mend an error of the framework, or empty.
func cure(domain string, code int) string {
	if domain != errorDomain {
		return ""
	}
	switch code {
	case codeConfiguration:
		return "if it says entitlement: carreld must be signed with com.apple.security.virtualization (scripts/sign)"
	case codeDiskImage:
		return "carrel image verify; a disk of the guest's may be damaged"
	case codeLimit:
		return "stop another virtual machine on this Mac"
	case codeNoSpace:
		return "free some space on this Mac's disk"
	case codeSave, codeRestore:
		return "start the guest afresh: a saved one goes on only on the same Mac and macOS"
	case codeInternal:
		return "Console.app shows what com.apple.Virtualization.VirtualMachine said"
	}
	return ""
}
