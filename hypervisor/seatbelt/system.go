package seatbelt

// What every program of macOS needs of the system. The lists were put together
// from profiles that others have run, since nothing could be run here:
//
//	Chromium   sandbox/policy/mac/common.sb (098756533733)
//	srt        src/sandbox/macos-sandbox-utils.ts (anthropic-experimental/sandbox-runtime)
//	Codex      codex-rs/core/src/seatbelt_base_policy.sbpl (openai/codex)
//	Bazel      DarwinSandboxedSpawnRunner.java, for "the last matching rule wins"
//
// Where they differ, the narrower one was taken. Left out on purpose:
// trustd (it fetches what a certificate names, from outside of the sandbox),
// mDNSResponder (names would go out past the proxy), cfprefsd and user
// preferences (they are the user's), launch services and Apple events (they
// start programs outside of the sandbox).

// programs may be read and run: the system's own, Apple's command line tools,
// and the two places of Homebrew without their etc and var, in which databases
// keep their files.
var programs = []string{
	"/bin", "/sbin",
	"/usr/bin", "/usr/lib", "/usr/libexec", "/usr/sbin", "/usr/share",
	"/usr/local/Cellar", "/usr/local/Frameworks", "/usr/local/bin", "/usr/local/include", "/usr/local/lib",
	"/usr/local/libexec", "/usr/local/opt", "/usr/local/sbin", "/usr/local/share",
	"/opt/homebrew/Cellar", "/opt/homebrew/Frameworks", "/opt/homebrew/bin", "/opt/homebrew/include", "/opt/homebrew/lib",
	"/opt/homebrew/libexec", "/opt/homebrew/opt", "/opt/homebrew/sbin", "/opt/homebrew/share",
	"/Library/Apple/System/Library", "/Library/Apple/usr", // Rosetta
	"/Library/Developer/CommandLineTools",
	// Not /System as a whole: what users have lies under /System/Volumes/Data.
	"/System/Library",
	// Where the shared cache of libraries is, from macOS 13 on (Apple's
	// dyld-support.sb, by way of Chromium).
	"/System/Cryptexes/App", "/System/Cryptexes/OS",
	"/System/Volumes/Preboot/Cryptexes/App/System", "/System/Volumes/Preboot/Cryptexes/OS",
}

// readable folders hold no programs.
var readable = []string{
	"/private/etc/paths.d", "/private/etc/manpaths.d", "/private/etc/ssl", "/private/etc/ssh/ssh_config.d",
	"/private/var/db/timezone", "/private/var/select",
}

// readableFiles may be read and are no folders. The passwords are not in
// /etc/passwd. The root itself is opened, and so can be listed, by dyld.
var readableFiles = []string{
	"/",
	"/dev/null", "/dev/random", "/dev/stderr", "/dev/stdin", "/dev/stdout", "/dev/urandom", "/dev/zero",
	"/private/etc/bashrc", "/private/etc/group", "/private/etc/hosts", "/private/etc/localtime", "/private/etc/man.conf",
	"/private/etc/manpaths", "/private/etc/passwd", "/private/etc/paths", "/private/etc/profile", "/private/etc/protocols",
	"/private/etc/services", "/private/etc/shells", "/private/etc/ssh/ssh_config", "/private/etc/zprofile",
	"/private/etc/zshenv", "/private/etc/zshrc",
	"/private/var/db/xcode_select_link",
}

// machServices are those that a guest may talk to: who the users are, and the
// log. Each is a program outside of the sandbox that parses what it is sent.
var machServices = []string{
	"com.apple.logd",
	"com.apple.system.logger",
	"com.apple.system.opendirectoryd.libinfo",
	"com.apple.system.opendirectoryd.membership",
}

// sysctls tell of the machine and the kernel. Not kern.procargs2 and kern.proc:
// they tell of other processes of the user, their arguments and environments.
var sysctls = []string{
	"hw.activecpu", "hw.busfrequency_compat", "hw.byteorder", "hw.cacheconfig", "hw.cachelinesize", "hw.cachelinesize_compat",
	"hw.cpufamily", "hw.cpufrequency", "hw.cpufrequency_compat", "hw.cpusubtype", "hw.cputype", "hw.l1dcachesize", "hw.l1dcachesize_compat",
	"hw.l1icachesize", "hw.l1icachesize_compat", "hw.l2cachesize", "hw.l2cachesize_compat", "hw.l3cachesize", "hw.l3cachesize_compat",
	"hw.logicalcpu", "hw.logicalcpu_max", "hw.machine", "hw.memsize", "hw.model", "hw.ncpu", "hw.nperflevels", "hw.packages",
	"hw.pagesize", "hw.pagesize_compat", "hw.physicalcpu", "hw.physicalcpu_max", "hw.tbfrequency_compat", "hw.vectorunit",
	"kern.argmax", "kern.hostname", "kern.maxfilesperproc", "kern.maxproc", "kern.ngroups", "kern.osproductversion", "kern.osrelease",
	"kern.ostype", "kern.osvariant_status", "kern.osversion", "kern.secure_kernel", "kern.usrstack64", "kern.version",
	"machdep.cpu.brand_string", "machdep.ptrauth_enabled", "security.mac.lockdown_mode_state", "sysctl.proc_cputype", "vm.loadavg",
}

// sysctlPrefixes are families of them.
var sysctlPrefixes = []string{"hw.optional.", "hw.perflevel", "machdep.cpu."}

// sharedNames are the beginnings of names of semaphores and shared memory, which
// all processes of the machine have in common: Python's multiprocessing. Two
// guests that both know such a name can meet there.
var (
	semaphoreNames = []string{"/mp-"}
	memoryNames    = []string{"/psm_"}
)
