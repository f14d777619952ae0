package hcs

// meaning is what a code is for the user.
type meaning struct{ cause, cure string }

// Cures that several causes have.
const (
	cureHypervisor = "turn virtualization on in the firmware (VT-x, AMD-V or SVM); then, as administrator: " +
		"`dism /online /enable-feature /featurename:VirtualMachinePlatform /all /norestart`, `bcdedit /set hypervisorlaunchtype auto`, and restart Windows"
	cureService = "as administrator: `sc config vmcompute start= demand` and `sc start vmcompute`; if there is no such service, " +
		"`dism /online /enable-feature /featurename:VirtualMachinePlatform /all` and restart Windows"
	cureGroup = "as administrator: `net localgroup \"Hyper-V Administrators\" %USERNAME% /add`, then sign out and in again"
	cureDisk  = "move CARREL_HOME to a folder on NTFS that is neither compressed nor encrypted (`compact /u`, `cipher /d`; `fsutil sparse queryflag FILE` tells sparse files)"
	cureOurs  = "this is a fault of Carrel: please report it with the output of `carrel doctor --json`"
	cureAgain = "start the guest again; `carrel logs` has its last words"
	cureRoom  = "ask for less (--memory), or close something: WSL and other virtual machines count too"
	cureImage = "`carrel image verify`, and build or pull the image again"
)

// meanings are by winerror.h, and by what users of WSL, Docker and hcsshim report
// under each code.
var meanings = map[HRESULT]meaning{
	// The service's own (facility 0x37).
	0x80370100: {"the guest ended while it started", cureAgain},
	0x80370101: {"the image is for another version of Windows", cureOurs},
	0x80370102: {"the hypervisor does not run: virtualization is off in the firmware, or Windows' Virtual Machine Platform is not installed, or not started at boot", cureHypervisor},
	0x80370103: {"the call goes on in the background", cureOurs},
	0x80370105: {"the guest is not in a state in which that can be done", cureAgain},
	0x80370106: {"the guest ended unexpectedly", cureAgain},
	0x80370107: {"the guest was ended by force", cureAgain},
	0x80370108: {"the service could not reach the guest's worker process", cureService},
	0x80370109: {"the guest's worker process did not answer in time", cureAgain},
	0x8037010a: {"the connection to the guest's worker process ended", cureAgain},
	0x8037010b: {"the service does not know this request", "update Windows: build 19041 (Windows 10 2004) or later"},
	0x8037010c: {"the service does not speak this version of the protocol", "update Windows: build 19041 (Windows 10 2004) or later"},
	0x8037010d: {"the service does not understand the description of the guest", "update Windows; if it is up to date: " + cureOurs},
	0x8037010e: {"the guest is not there any more", cureAgain},
	0x8037010f: {"a guest with this id exists", cureOurs},
	0x80370110: {"the guest has stopped already", cureAgain},
	0x80370111: {"the service broke its protocol", cureService},
	0x80370112: {"a layer of the image is not one", cureImage},
	0x80370113: {"this needs a preview version of Windows", cureOurs},
	0x80370114: {"the Host Compute Service is not available", cureService},
	0x80370115: {"an operation was waited for that was not started", cureOurs},
	0x80370116: {"an operation was started twice", cureOurs},
	0x80370117: {"the operation has not ended yet", cureOurs},
	0x80370118: {"the operation did not end in time", "`sc query vmcompute`; restart the service or Windows if others hang too"},
	0x80370119: {"somebody else waits for this guest's events", cureOurs},
	0x8037011a: {"the service has no memory for its answer", cureRoom},
	0x8037011b: {"this user may not use the Host Compute Service", cureGroup},
	0x8037011c: {"the guest's kernel crashed", cureAgain},
	0x8037011d: {"there is no such process in the guest", cureOurs},
	0x8037011e: {"the Host Compute Service ended, and its guests with it", cureService},
	0x8037011f: {"the process has stopped already", cureOurs},
	0x80370120: {"the guest was not made for that", cureOurs},
	0x80370121: {"the operation was cancelled", cureAgain},

	// Windows' own (facility 7).
	0x80070002: {"a file of the guest is not there", cureImage},
	0x80070003: {"a folder on the way to one of the guest's files is not there, or the service's own under ProgramData\\Microsoft\\Windows\\Hyper-V is gone", cureImage + "; if it persists, turn the Virtual Machine Platform feature off and on again"},
	0x80070005: {"access is denied: this user may not use the Host Compute Service, or the guest's worker process may not read one of the guest's files", cureGroup},
	0x80070006: {"a handle of ours is not one", cureOurs},
	0x80070008: {"there is not enough memory on this computer", cureRoom},
	0x8007000d: {"something in the description of the guest is not valid", cureOurs},
	0x8007000e: {"there is not enough memory on this computer", cureRoom},
	0x80070020: {"one of the guest's files is in use by another program", "stop the guest that has the same disk (`carrel ls`), or the program that scans it"},
	0x80070032: {"this edition or version of Windows cannot do that", "docs/hcs.md says what a guest needs; update Windows"},
	0x80070057: {"a value in the description of the guest is not one that this Windows takes", "ask for fewer CPUs than this computer has, and less memory; if that is so: " + cureOurs},
	0x80070070: {"the disk of this computer is full", "`carrel prune` frees room"},
	0x8007007e: {"a library of Windows is missing: the Virtual Machine Platform is not installed", cureHypervisor},
	0x8007007f: {"a function is missing in computecore.dll: this Windows is too old", "update Windows: build 19041 (Windows 10 2004) or later"},
	0x80070422: {"the Host Compute Service is disabled", cureService},
	0x80070424: {"there is no Host Compute Service: the Virtual Machine Platform is not installed", cureHypervisor},
	0x8007042c: {"a service that the Host Compute Service needs does not start", "look at hvhost and vmcompute in `services.msc`; a security product may block them"},
	0x80070490: {"something that the description of the guest names is not there", cureOurs},
	0x80070569: {"the guest's worker process may not sign in: a group policy took \"Log on as a service\" from NT VIRTUAL MACHINE\\Virtual Machines",
		"as administrator: `gpupdate /force` and restart the service vmcompute; if it comes back, the domain's administrator adds NT VIRTUAL MACHINE\\Virtual Machines to \"Log on as a service\""},
	0x800705aa: {"this computer has not enough resources for the guest: memory, nearly always", cureRoom},
	0x800705af: {"the paging file is too small for the guest's memory", cureRoom + "; or let Windows manage the size of its paging file"},
	0x800705b4: {"the service did not answer in time", "`sc query vmcompute`; restart the service or Windows if others hang too"},
	0x800706ba: {"the Host Compute Service cannot be reached", cureService},
	0x800706be: {"the Host Compute Service ended in the middle of the call", cureService},
	0x80004005: {"the service gives no reason", "look in the event log: Applications and Services, Microsoft, Windows, Hyper-V-Compute"},
	0x8000ffff: {"the service met what it did not expect", "look in the event log: Applications and Services, Microsoft, Windows, Hyper-V-Compute"},

	// The hypervisor (facility 0x35).
	0xc0350005: {"the hypervisor refuses: another one, or a security product, owns the processor's virtualization", "turn the other hypervisor off, or let it use Windows' own"},
	0xc035000b: {"the hypervisor has not enough memory for the guest", cureRoom},
	0xc0351000: {"the hypervisor does not run", cureHypervisor},

	// Virtual disks (facility 0x3a).
	0xc03a0001: {"a disk of the guest lacks its last sector: it was cut short", cureImage},
	0xc03a0002: {"the last sector of a disk of the guest is damaged", cureImage},
	0xc03a0003: {"the last sector of a disk of the guest is damaged", cureImage},
	0xc03a0004: {"a disk of the guest has a format that Windows does not know", cureImage},
	0xc03a0013: {"a disk of the guest has a size that a VHD cannot have", cureImage},
	0xc03a0014: {"Windows has no driver for the guest's disk", cureOurs},
	0xc03a001a: {"a disk of the guest lies in a folder that is compressed or encrypted, or is a sparse file", cureDisk},
	0xc03a001d: {"the drive of this folder has sectors that a VHD cannot lie on", "move CARREL_HOME to another drive"},
	0xc03a001e: {"a disk of the guest belongs to another virtual machine", "stop the guest that has the same disk (`carrel ls`)"},
}
