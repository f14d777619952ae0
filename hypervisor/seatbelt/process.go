package seatbelt

import (
	"errors"
	"fmt"
	"path"
	"slices"
)

// Process is one of Carrel's own processes that read what guests write, as its
// profile needs to know it: of a share, of a review, or a guest's egress process.
// Its paths are those that the kernel has (KernelPath).
type Process struct {
	// Program is the file that it runs. It can start no other, and no process.
	Program string
	// Read and Write are the folders that it has, beside what every program
	// needs of the system.
	Read, Write []string
	// Files are single files that it may read, Listen is the path of a Unix
	// socket that it makes and on which it is called; may be empty.
	Files  []string
	Listen string
	// Dial: it connects to servers, asks for their names, has their certificates
	// verified, and listens on ports for those that are published. Otherwise it
	// has no network at all.
	Dial bool
	// Machine: it runs one by Virtualization.framework, whose folder of caches is
	// Caches. Nothing that Carrel starts is that yet (machine.go).
	Machine bool
	Caches  string
}

// maxFolders bounds one profile: a guest's shares and their stores.
const maxFolders = 4 * maxShares

// What a process of Carrel needs to start and to run: what dyld loads and maps,
// the local time, and which files it has open. It is a part of what programs of guests are given
// (system.go), by the same sources.
var (
	libraries = []string{
		"/usr/lib", "/Library/Apple/System/Library", "/Library/Apple/usr", "/System/Library",
		"/System/Cryptexes/App", "/System/Cryptexes/OS", "/System/Volumes/Preboot/Cryptexes/App/System", "/System/Volumes/Preboot/Cryptexes/OS",
	}
	ownFolders = []string{"/dev/fd", "/private/var/db/timezone", "/usr/share/zoneinfo", "/usr/share/zoneinfo.default"}
	ownFiles   = []string{"/", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero", "/private/etc/localtime"}
)

// What one that dials needs beside that: the resolver's files and its service,
// which is asked on a socket, and the services that verify a server's
// certificate. The latter may fetch what a certificate names, from outside of the
// sandbox. The names are those of Codex's network policy (seatbelt_network_policy.sbpl)
// and of Go's resolver and verifier, without those of preferences.
var (
	dialFolders  = []string{"/private/etc/ssl"}
	dialFiles    = []string{"/private/etc/hosts", "/private/etc/resolv.conf", "/private/etc/services", "/private/etc/protocols", "/private/var/run/resolv.conf"}
	dialServices = []string{
		"com.apple.SecurityServer", "com.apple.SystemConfiguration.DNSConfiguration", "com.apple.SystemConfiguration.configd",
		"com.apple.system.notification_center", "com.apple.system.opendirectoryd.libinfo", "com.apple.trustd", "com.apple.trustd.agent",
	}
)

// resolverSocket is where macOS' resolver answers.
const resolverSocket = "/private/var/run/mDNSResponder"

// Profile writes the profile of the process, which LintProcess passes. Everything
// is denied that is not named, and what is taken back comes last.
func (p Process) Profile() (string, error) {
	if err := p.fits(); err != nil {
		return "", err
	}
	w := &writer{}
	w.line("(version 1)")
	w.line("(deny default)")

	w.note("Itself: no other process, none new, and no other program.")
	w.rule("deny", "process-info*", w.symbol("target", "others"))
	w.rule("allow", "process-info*", w.symbol("target", "self"))
	w.rule("allow", "signal", w.symbol("target", "self"))
	w.rule("allow", "file-read* process-exec* file-map-executable", w.strings("literal", []string{p.Program})...)

	w.note("The system's libraries, and what the kernel says of the machine.")
	w.rule("allow", "sysctl-read", slices.Concat(w.strings("sysctl-name", sysctls), w.strings("sysctl-name-prefix", sysctlPrefixes))...)
	w.rule("allow", "file-read* file-map-executable", w.strings("subpath", libraries)...)
	w.rule("allow", "file-read*", slices.Concat(w.strings("subpath", ownFolders), w.strings("literal", ownFiles))...)
	w.rule("allow", "file-write-data", w.strings("literal", []string{"/dev/null"})...)

	w.note("What lies above what it has, to be looked at and not to be listed.")
	w.rule("allow", "file-read-metadata", w.strings("literal", p.above())...)

	if len(p.Read)+len(p.Files) > 0 {
		w.note("What it has, to be read.")
		var at []string
		if len(p.Read) > 0 {
			at = w.strings("subpath", p.Read)
		}
		if len(p.Files) > 0 {
			at = append(at, w.strings("literal", p.Files)...)
		}
		w.rule("allow", "file-read*", at...)
	}
	if len(p.Write) > 0 {
		w.note("What it has, to be written.")
		w.rule("allow", "file-read* file-write*", w.strings("subpath", p.Write)...)
	}
	if p.Listen != "" {
		w.note("The socket on which it is called.")
		w.rule("allow", "file-read* file-write*", w.strings("literal", []string{p.Listen})...)
		w.rule("allow", "network-bind network-inbound", "(local unix-socket "+w.strings("literal", []string{p.Listen})[0]+")")
	}
	if p.Dial {
		w.note("The way out, and names and certificates on it.")
		w.rule("allow", "file-read*", slices.Concat(w.strings("subpath", dialFolders), w.strings("literal", dialFiles))...)
		w.rule("allow", "mach-lookup", w.strings("global-name", dialServices)...)
		w.rule("allow", "network-outbound", "(remote tcp \"*:*\")", "(remote udp \"*:*\")", "(remote unix-socket "+w.strings("literal", []string{resolverSocket})[0]+")")
		w.note("The ports of the host that lead into the guest.")
		w.rule("allow", "network-bind network-inbound", "(local tcp \"localhost:*\")")
	}
	if p.Machine {
		p.machine(w)
	}
	w.note("No file that runs with another's rights, and no device.")
	w.rule("deny", "file-write-setugid file-mknod")
	if w.err != nil {
		return "", w.err
	}
	text := w.b.String()
	if err := LintProcess(text, p); err != nil {
		return "", fmt.Errorf("the profile of the sandbox is wrong, and is not used: %w", err)
	}
	return text, nil
}

// above are the folders above all that it has.
func (p Process) above() (up []string) {
	all := slices.Concat([]string{p.Program, p.Listen, p.Caches}, p.Read, p.Write, p.Files, libraries, ownFolders, ownFiles[1:])
	if p.Dial {
		all = slices.Concat(all, dialFolders, dialFiles, []string{resolverSocket})
	}
	for _, at := range all {
		if at != "" {
			up = append(up, ancestors(at)...)
		}
	}
	up = append(up, links...)
	slices.Sort(up)
	return slices.Compact(up)
}

// fits refuses what cannot stand in a profile, and a folder that would undo it.
func (p Process) fits() error {
	all := slices.Concat([]string{p.Program}, p.Read, p.Write, p.Files)
	if p.Listen != "" {
		all = append(all, p.Listen)
	}
	if p.Machine {
		all = append(all, p.Caches)
	}
	if len(all) > maxFolders {
		return fmt.Errorf("a sandbox of %d folders; %d are possible", len(all), maxFolders)
	}
	for _, at := range all {
		if err := checkPath(at); err != nil {
			return fmt.Errorf("a sandbox with %.200q: %w", at, err)
		}
	}
	for _, at := range p.Write {
		if within(p.Program, at) {
			return fmt.Errorf("a sandbox that may write %s, in which its own program lies (%s)", at, path.Base(p.Program))
		}
		if err := system(at); err != nil {
			return fmt.Errorf("a sandbox that may write %s: %w", at, err)
		}
	}
	return nil
}

// LintProcess is Lint for the profile of a process of Carrel, and says of each
// rule that allows a file or an address whether p has it.
func LintProcess(profile string, p Process) error {
	forms, err := lintForms(profile, lintOwn)
	if err != nil {
		return err
	}
	var all []error
	for _, f := range forms[2:] {
		if err := p.grants(f); err != nil {
			all = append(all, fmt.Errorf("line %d: %w", f.line, err))
		}
	}
	return errors.Join(all...)
}

// grants says what a rule allows that p has not.
func (p Process) grants(f expr) error {
	if f.head() != "allow" {
		return nil
	}
	var ops []string
	var rest []expr
	for i, e := range f.of[1:] {
		if e.kind != symbol {
			rest = f.of[i+1:]
			break
		}
		ops = append(ops, e.word)
	}
	if slices.ContainsFunc(ops, func(op string) bool { return operations[op].subject == aboutExtension }) {
		return p.extends(ops, rest)
	}
	for _, e := range rest { // a filter may have many values, of which only the first is judged below
		if n := len(e.of); n != 2 && (n != 3 || e.head() != "local" && e.head() != "remote") {
			return fmt.Errorf("%s with %d values, where one is what a process has a use for", e.head(), n-1)
		}
	}
	for _, op := range ops {
		switch operations[op].subject {
		case aboutFile:
			for _, e := range rest {
				if at := e.of[1].word; !p.has(op, e.head(), at) {
					return fmt.Errorf("%s of %.200q, which it was not given", op, at)
				}
			}
		case aboutNetwork:
			for _, e := range rest {
				if err := p.reaches(op, e); err != nil {
					return err
				}
			}
		case aboutMach:
			for _, e := range rest {
				if p.Machine && op == "mach-lookup" && slices.Contains(machineLookups, e.head()+" "+e.of[1].word) {
					continue
				}
				if !p.Dial || op != "mach-lookup" || e.head() != "global-name" || !slices.Contains(dialServices, e.of[1].word) {
					return fmt.Errorf("%s of a service that it has no use for", op)
				}
			}
		default:
			if op != "sysctl-read" && op != "process-info*" && op != "signal" {
				return fmt.Errorf("%s, which it has no use for", op)
			}
		}
	}
	return nil
}

// has says whether it was given a file, for an operation.
func (p Process) has(op, filter, at string) bool {
	one := filter == "literal"
	switch op {
	case "file-read-metadata":
		return one
	case "process-exec*":
		return one && at == p.Program
	case "file-map-executable":
		return one && at == p.Program || slices.Contains(libraries, at)
	case "file-write-data":
		return one && at == "/dev/null"
	case "file-write*":
		return !one && slices.Contains(p.Write, at) || one && at == p.Listen
	case "file-read*":
		folders, files := slices.Concat(p.Read, p.Write, libraries, ownFolders), slices.Concat(p.Files, []string{p.Program, p.Listen}, ownFiles)
		if p.Dial {
			folders, files = append(folders, dialFolders...), append(files, dialFiles...)
		}
		if one {
			return slices.Contains(files, at)
		}
		return slices.Contains(folders, at)
	}
	return false
}

// reaches says what is wrong with an address.
func (p Process) reaches(op string, e expr) error {
	end, kind := e.head(), e.of[1].word
	if kind == "unix-socket" {
		if len(e.of) != 3 || len(e.of[2].of) != 2 {
			return fmt.Errorf("%s of more than one socket", op)
		}
		at := e.of[2].of[1].word
		if end == "local" && at == p.Listen || end == "remote" && p.Dial && at == resolverSocket {
			return nil
		}
		return fmt.Errorf("%s of the socket %.200q, which it was not given", op, at)
	}
	if !p.Dial || (op == "network-outbound") != (end == "remote") {
		return fmt.Errorf("%s %s, and it has no network", op, kind)
	}
	return nil
}
