package seatbelt

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/carrel-vm/carrel/hypervisor"
)

// HostRoot is the Config's Root of every guest here: the Mac's own system.
const HostRoot = "/"

// maxShares and maxPorts bound one profile. The kernel's compiler of profiles
// gives up at some thousand rules.
const (
	maxShares = 64
	maxPorts  = 64
)

// Host is what a profile needs to know beside the guest's Config.
type Host struct {
	// Agent is the path of carrel-agent.
	Agent string
	// Files is the guest's private folder, for its home and temporary files.
	Files string
	// Home is the user's home directory: nothing of it is shared as a whole.
	Home string
	// Proxy is the port of the loopback on which the agent takes the guest's
	// connections. 0: there is no way out.
	Proxy uint16
	// Ports are ports on which the guest's programs may listen. To Seatbelt
	// "localhost" is every address of the machine, so what listens there can
	// be reached from the network where the firewall lets it.
	Ports []uint16
	// Names are the rules within each share that is not plain, in the order of
	// the shares.
	Names []Names
}

// Profile writes the Seatbelt profile of a guest. It is a function of its
// arguments alone: that paths are the real ones is the caller's affair.
//
// Everything is denied that is not named. Of the rules that match, the last one
// counts, so those that take something back come after what gives it.
func Profile(cfg hypervisor.Config, h Host) (string, error) {
	if err := fits(cfg, h); err != nil {
		return "", err
	}
	w := &writer{}
	w.line("(version 1)")
	w.line("(deny default)")

	w.note("Processes: its own children and no others, none with more rights. A child inherits this profile.")
	w.rule("allow", "process-fork")
	w.rule("allow", "signal", w.symbol("target", "same-sandbox"))
	// Without the first, and in spite of the default, lsof was seen to list the
	// processes of the user. It comes first in case others are all but itself.
	w.rule("deny", "process-info*", w.symbol("target", "others"))
	w.rule("allow", "process-info*", w.symbol("target", "same-sandbox"))

	w.note("The kernel and the services of the system.")
	w.rule("allow", "sysctl-read", slices.Concat(w.strings("sysctl-name", sysctls), w.strings("sysctl-name-prefix", sysctlPrefixes))...)
	w.rule("allow", "mach-lookup", w.strings("global-name", machServices)...)
	w.rule("allow", "ipc-posix-sem*", w.strings("ipc-posix-name-prefix", semaphoreNames)...)
	w.rule("allow", "ipc-posix-shm*", w.strings("ipc-posix-name-prefix", memoryNames)...)

	w.note("Terminals: those that it has opened itself. Others of the user can be typed into.")
	w.rule("allow", "pseudo-tty")
	w.rule("allow", "file-read* file-write* file-ioctl", w.strings("literal", []string{"/dev/ptmx"})...)
	w.rule("allow", "file-read* file-write* file-ioctl",
		`(require-all (regex #"^/dev/ttys[0-9]+$") (extension "com.apple.sandbox.pty"))`)
	w.rule("allow", "file-read* file-write-data file-ioctl", w.strings("literal", []string{"/dev/tty"})...)
	w.rule("allow", "file-read* file-write-data", w.strings("subpath", []string{"/dev/fd"})...) // its own open files

	w.note("The system, to be read; its programs, to be run.")
	w.rule("allow", "file-read*", slices.Concat(w.strings("subpath", programs), w.strings("subpath", readable), w.strings("literal", readableFiles))...)
	w.rule("allow", "file-write-data", w.strings("literal", []string{"/dev/null", "/dev/zero"})...)
	w.rule("allow", "file-read* process-exec* file-map-executable", w.strings("literal", []string{h.Agent})...)
	w.rule("allow", "process-exec* file-map-executable", w.strings("subpath", programs)...)

	shares := byDepth(cfg.Shares)
	names := map[string]Names{}
	for i, s := range cfg.Shares {
		if !s.Plain {
			names[s.Path] = h.Names[i]
		}
	}
	w.note("What lies above, to be looked at and not to be listed: programs ask where they are.")
	w.rule("allow", "file-read-metadata", w.strings("literal", above(append([]string{h.Agent, h.Files}, paths(shares)...)))...)

	w.note("The guest's own folder.")
	own := w.strings("subpath", []string{h.Files})
	w.rule("allow", "file-read* file-write* process-exec* file-map-executable", own...)

	w.note("The shares, those that lie in another after it.")
	for _, s := range shares {
		at := w.strings("subpath", []string{s.Path})
		w.rule("allow", "file-read* process-exec* file-map-executable", at...)
		if s.ReadOnly {
			w.rule("deny", "file-write*", at...)
		} else {
			w.rule("allow", "file-write*", at...)
		}
		if err := w.names(s.Path, s.ReadOnly, names[s.Path]); err != nil {
			return "", fmt.Errorf("share %.200q: %w", s.Path, err)
		}
	}

	w.note("A rule is about a path. So what a rule names stays where it is, and so does what lies above it in a writable share.")
	w.rule("deny", "file-write-unlink", w.strings("literal", pinned(h.Files, shares))...)
	w.note("Another name of a file would have another rule. What is immutable or of another's rights would stay behind.")
	w.rule("deny", "file-link")
	w.rule("deny", "file-write-setugid file-write-flags")

	w.note("The network: the agent's proxy.")
	w.rule("deny", "network*")
	if h.Proxy != 0 {
		// The agent inherits its listener, so nobody binds.
		w.port("network-outbound", "remote", h.Proxy)
		w.port("network-inbound", "local", h.Proxy)
	}
	for _, p := range h.Ports {
		w.port("network-bind network-inbound", "local", p)
		w.port("network-outbound", "remote", p)
	}
	if w.err != nil {
		return "", w.err
	}
	return w.b.String(), nil
}

// fits refuses what Seatbelt cannot do for a guest.
func fits(cfg hypervisor.Config, h Host) error {
	switch {
	case cfg.Root != HostRoot:
		return errors.New("its system cannot come from an image: there is no Linux behind Seatbelt (use --image host)")
	case len(cfg.Shares) > maxShares:
		return fmt.Errorf("it has %d shares, %d is the limit", len(cfg.Shares), maxShares)
	case len(h.Ports) > maxPorts:
		return fmt.Errorf("it has %d ports to listen on, %d is the limit", len(h.Ports), maxPorts)
	case slices.Contains(h.Ports, 0):
		return errors.New("a program may not listen on a port that the kernel picks: Seatbelt knows either one port or all (name a port)")
	case h.Proxy != 0 && slices.Contains(h.Ports, h.Proxy):
		return fmt.Errorf("port %d is the proxy's (name another)", h.Proxy)
	}
	for what, p := range map[string]string{"the agent": h.Agent, "the guest's folder": h.Files, "the home directory": h.Home} {
		if err := checkPath(p); err != nil {
			return fmt.Errorf("%s %.200q: %w", what, p, err)
		}
	}
	seen, patterns := map[string]bool{}, 0
	for i, s := range cfg.Shares {
		var n Names
		if i < len(h.Names) {
			n = h.Names[i]
			patterns += len(n.Hide) + len(n.Protect)
		}
		err := checkPath(s.Path)
		switch {
		case err != nil:
		case s.GuestPath != s.Path:
			err = fmt.Errorf("it cannot appear as %.200q: Seatbelt gives a folder no other path (leave the path in the guest out)", s.GuestPath)
		case s.Overlay:
			err = errors.New("there is no review behind Seatbelt, as macOS has no layer over a folder (share it with :ro or :rw)")
		case n.NoDelete && !s.ReadOnly:
			err = errors.New("nothing in it can be kept from being deleted, since Seatbelt does not tell writing to a file from cutting it short (share it with :ro or :rw)")
		case !s.Plain && len(h.Names) != len(cfg.Shares):
			err = errors.New("the rules of names in it are not known (share it with :plain)")
		case patterns > maxNames:
			err = fmt.Errorf("the shares up to it have %d names to hide or protect, %d is the limit (share fewer folders, or some with :plain)", patterns, maxNames)
		case seen[s.Path]:
			err = errors.New("it is shared twice")
		case within(h.Home, s.Path):
			err = errors.New("it holds the home directory (share a folder in it)")
		case within(h.Files, s.Path) || within(s.Path, h.Files):
			err = errors.New("it overlaps the guest's own folder")
		case within(h.Agent, s.Path) && !s.ReadOnly:
			err = fmt.Errorf("it holds the agent %s (share it read-only)", h.Agent)
		}
		if err == nil && !s.ReadOnly {
			err = system(s.Path)
		}
		if err != nil {
			return fmt.Errorf("share %.200q: %w", s.Path, err)
		}
		seen[s.Path] = true
	}
	return nil
}

// system refuses a folder that has to do with the system's own.
func system(p string) error {
	for _, s := range slices.Concat(programs, readable, readableFiles[1:]) {
		if within(p, s) || within(s, p) {
			return fmt.Errorf("it overlaps %s, which is the system's (share it read-only)", s)
		}
	}
	return nil
}

// byDepth puts shares in others after them. The order of the rest is by name.
func byDepth(shares []hypervisor.Share) []hypervisor.Share {
	s := slices.Clone(shares)
	slices.SortFunc(s, func(a, b hypervisor.Share) int {
		return strings.Compare(a.Path, b.Path) // a prefix comes first
	})
	return s
}

func paths(shares []hypervisor.Share) (all []string) {
	for _, s := range shares {
		all = append(all, s.Path)
	}
	return all
}

// above are the folders above all of these, and those above the system's, and
// the names that are links.
func above(all []string) []string {
	var up []string
	for _, p := range slices.Concat(all, programs, readable, readableFiles[1:]) {
		up = append(up, ancestors(p)...)
	}
	up = append(up, links...)
	slices.Sort(up)
	return slices.Compact(up)
}

// pinned are the folders that must keep their names: the private one, each
// share, and what lies between a share and one that it lies in.
func pinned(files string, shares []hypervisor.Share) []string {
	pins := []string{files}
	for _, s := range shares {
		pins = append(pins, s.Path)
		for _, outer := range shares {
			for p := path.Dir(s.Path); within(p, outer.Path); p = path.Dir(p) {
				pins = append(pins, p)
			}
		}
	}
	slices.Sort(pins)
	return slices.Compact(pins)
}

// writer writes rules. Its first error stays.
type writer struct {
	b   strings.Builder
	err error
}

func (w *writer) line(s string) {
	w.b.WriteString(s)
	w.b.WriteByte('\n')
}

func (w *writer) note(s string) { w.line("\n; " + s) }

// rule writes one rule; filters are alternatives.
func (w *writer) rule(action, operations string, filters ...string) {
	w.b.WriteString("(" + action + " " + operations)
	sep := " "
	if len(filters) > 1 {
		sep = "\n  "
	}
	for _, f := range filters {
		w.b.WriteString(sep + f)
	}
	w.line(")")
}

func (w *writer) symbol(filter, value string) string { return "(" + filter + " " + value + ")" }

// strings makes a filter of each value. None would be a rule without a filter,
// which is one about everything.
func (w *writer) strings(filter string, values []string) (all []string) {
	if len(values) == 0 {
		w.err = errors.Join(w.err, fmt.Errorf("a rule about no %s", filter))
	}
	for _, v := range values {
		q, err := quote(v)
		if err != nil {
			w.err = errors.Join(w.err, fmt.Errorf("%.200q: %w", v, err))
		}
		all = append(all, "("+filter+" "+q+")")
	}
	return all
}

// port writes a rule about one TCP port. In an address of a rule the host can
// only be "localhost" or "*", and there are no ranges.
func (w *writer) port(operations, end string, port uint16) {
	w.rule("allow", operations, fmt.Sprintf(`(%s tcp "localhost:%d")`, end, port))
}
