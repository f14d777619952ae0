package doctor

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
)

// oldestMac is the first macOS with all that a guest uses of the
// Virtualization framework: file-system devices came with 12, and what boots a
// kernel directly with rosetta, EFI and sharing of several folders with 13.
const oldestMac = 13

// VirtualizationEntitlement is what a program needs to make a machine
// (https://developer.apple.com/documentation/bundleresources/entitlements/com.apple.security.virtualization).
const VirtualizationEntitlement = "com.apple.security.virtualization"

// Mac are facts of a macOS host.
type Mac struct {
	Version string // kern.osproductversion
	Arch    string // this program's
	// HV is kern.hv_support: 1 or 0; nil: the system did not say.
	HV *int
	// Virtual is kern.hv_vmm_present: this Mac is a guest.
	Virtual bool
	// Translated is sysctl.proc_translated: an Intel program on Apple silicon.
	Translated bool
	// Built says that this program has the driver in it, which takes cgo.
	Built bool
	// Signed is what codesign says of this program.
	Signed Signature
	// Quarantined are programs of ours that carry com.apple.quarantine.
	Quarantined []string `json:",omitempty"`
	// Seatbelt is the process wall.
	Seatbelt Program
	// Tools says that Apple's command line tools are there.
	Tools bool
}

// Signature is what was signed into a program.
type Signature struct {
	Program      string
	Entitlements []string `json:",omitempty"`
	Trouble      string   `json:",omitempty"`
}

// Findings of a Mac.
func (m Mac) Findings() []*api.Finding {
	var f findings
	major, _ := strconv.Atoi(strings.SplitN(m.Version, ".", 2)[0])
	switch {
	case major >= oldestMac:
		f.good("system", "macOS "+m.Version+", "+m.Arch)
	case m.Version == "":
		f.bad(macOld, "system", "the version of macOS is not known", "kern.osproductversion did not answer", fmt.Sprintf("macOS %d or newer", oldestMac))
	default:
		f.bad(macOld, "system", "no machine can be started: macOS "+m.Version+" is too old", fmt.Sprintf("the Virtualization framework has what a guest needs from macOS %d on", oldestMac), "softwareupdate --list, then softwareupdate --install NAME")
	}
	m.virtualization(&f)
	m.program(&f)
	if t := m.Seatbelt.Trouble; t.Cause != "" {
		f.note(seatbeltMissing, "process wall", "--boundary process does not work", t.Cause, or(t.Cure, "docs/seatbelt.md says what it needs"))
	} else {
		f.good("process wall", strings.Join(append([]string{"Seatbelt, with this Mac's own system"}, m.Seatbelt.Notes...), "; "))
		f.note(seatbeltUntried, "process wall", "this wall was made without a Mac: its rules are taken from others' and have not been tried", "nobody has run it on a Mac yet", "docs/seatbelt.md says what was tried, and how")
	}
	f.note(macConfinement, "confinement", "a guest's keeper and its egress process have no sandbox of their own, as they have on Linux", "macOS has neither Landlock nor seccomp, and a profile for them is not written yet", "none; docs/seatbelt.md says what that means")
	if !m.Tools {
		f.note(cltMissing, "command line tools", "git, make and compilers are missing in guests behind --boundary process", "Apple's command line tools are not installed", "xcode-select --install")
	}
	return f
}

func (m Mac) virtualization(f *findings) {
	const check, none = "virtualization", "no machine can be started"
	switch {
	case m.HV == nil:
		f.note(hvUnknown, check, "whether this Mac can run machines is not known", "kern.hv_support did not answer", "sysctl kern.hv_support: 1 is yes")
	case *m.HV == 1:
		f.good(check, "the processor's virtualization is there (kern.hv_support = 1)")
	case m.Virtual:
		f.bad(hvNested, check, none+": this Mac is itself virtual, and has no virtualization lent to it (kern.hv_support = 0)", "machines in machines take an M3 or newer, macOS 15 on both sides, and a host that asks for it", "run Carrel on the Mac itself; or --boundary process --image host, which is weaker")
	default:
		f.bad(hvOff, check, none+": this Mac's processor has no virtualization (kern.hv_support = 0)", "Macs from before 2010 have none, and another hypervisor's kernel extension can take it", "kextstat | grep -v com.apple shows extensions of others; --boundary process --image host works without, and is weaker")
	}
}

func (m Mac) program(f *findings) {
	const check = "entitlement"
	if m.Translated {
		f.bad(rosetta, check, "no machine can be started: this is the Intel program, under Rosetta", "the Virtualization framework refuses translated programs", "install the arm64 release: brew reinstall carrel from a Homebrew in /opt/homebrew")
	}
	for _, path := range m.Quarantined {
		f.bad(quarantined, "quarantine", path+" came from the network and is quarantined: macOS may refuse to run it", "it carries the attribute com.apple.quarantine", "xattr -d com.apple.quarantine "+quote(path))
	}
	if !m.Built {
		f.bad(vzNotBuilt, check, "no machine can be started: this carreld was built without the driver", "it was compiled without cgo, which Apple's framework needs", "CGO_ENABLED=1 make build, on a Mac; or install a release")
		return
	}
	f.note(vzUntried, "driver", "machines on macOS were made without a Mac: what drives them was type-checked, and never run", "nobody has run it on a Mac yet", "scripts/verify-host tries it, and says what holds")
	switch {
	case m.Signed.Trouble != "":
		f.note(signature, check, "whether this program may make machines is not known", m.Signed.Trouble, "codesign -d --entitlements - "+quote(m.Signed.Program))
	case slices.Contains(m.Signed.Entitlements, VirtualizationEntitlement):
		f.good(check, "this program may make machines ("+VirtualizationEntitlement+")")
	default:
		f.bad(entitlement, check, "no machine can be started: this program may not make one", m.Signed.Program+" was signed without "+VirtualizationEntitlement, "scripts/sign "+quote(m.Signed.Program))
	}
}

// maxPlist bounds what is read of a property list, in elements: one of ours has
// ten.
const maxPlist = 4096

// Entitlements returns the keys that are true in the property list that
// `codesign -d --entitlements - --xml` prints.
func Entitlements(plist []byte) (names []string, err error) {
	d := xml.NewDecoder(strings.NewReader(string(plist)))
	key := ""
	for range maxPlist {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the entitlements are no property list: %w", err)
		}
		e, is := t.(xml.StartElement)
		if !is {
			continue
		}
		switch e.Name.Local {
		case "key":
			key = ""
			if err := d.DecodeElement(&key, &e); err != nil {
				return nil, fmt.Errorf("the entitlements are no property list: %w", err)
			}
		case "true":
			names, key = append(names, key), ""
		}
	}
	return nil, errors.New("the entitlements are no property list: it does not end")
}

// quote makes one word of a path for a shell.
func quote(path string) string {
	if path != "" && strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
