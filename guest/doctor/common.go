package doctor

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/carrel-vm/carrel/guest/api"
)

// Common are facts that every host has.
type Common struct {
	Disks    []Disk
	Image    Image
	Keychain Keychain
	// Agent is the path of the carrel-agent that belongs to this daemon, and
	// AgentTrouble why it is not there.
	Agent        string
	AgentTrouble string `json:",omitempty"`
	// Guests is how many there are, -1 where nobody looked, Damaged those whose
	// state cannot be read.
	Guests  int
	Damaged []Damaged `json:",omitempty"`
	// Telemetry is where events go, nil where nobody looked.
	Telemetry *Telemetry `json:",omitempty"`
}

// Telemetry is what is sent to a receiver of OpenTelemetry.
type Telemetry struct {
	Endpoint string // empty: it is off
	// Sent and Dropped count records since the daemon's start; Waiting is how many
	// events the receiver does not have.
	Sent, Dropped, Waiting int64
	Trouble                string `json:",omitempty"` // why nothing can be sent now
}

// Disk is one on which we write.
type Disk struct {
	Dir string
	// Free bytes, and how many have to stay free.
	Free, Floor int64
	Trouble     string `json:",omitempty"` // it could not be asked
}

// Image is the default one.
type Image struct {
	Name, Kernel     string
	Missing, Damaged bool   `json:",omitempty"`
	Trouble          string `json:",omitempty"`
	// Elsewhere says that images are not built on this system.
	Elsewhere bool `json:",omitempty"`
}

// Damaged is a guest that was set aside.
type Damaged struct{ Name, Cause string }

// Keychain is where secrets are kept.
type Keychain struct {
	System string // the keychain's name on this system
	// Kind is what CARREL_SECRET_STORE asks for: "file", "keychain" or nothing.
	Kind    string `json:",omitempty"`
	Answers bool
	Trouble string `json:",omitempty"`
}

// Findings of the facts that every host has.
func (c Common) Findings() []*api.Finding {
	var f findings
	for _, d := range c.Disks {
		switch {
		case d.Trouble != "":
			f.bad(diskUnknown, "disk", "how much is free for "+d.Dir+" is not known", d.Trouble, "see that the folder is there and yours: ls -ld "+quote(d.Dir))
		case d.Free < d.Floor:
			f.bad(diskFull, "disk", fmt.Sprintf("%s are free on the disk that holds %s; %s have to stay free: no guest is started and no image made", bytes(d.Free), d.Dir, bytes(d.Floor)),
				"", "make room: carrel prune shows what of ours nobody needs, carrel ls --size what guests take; host.free in policy.yaml says how much has to stay free")
		default:
			f.good("disk", fmt.Sprintf("%s are free for %s; below %s no guest is started and no image made", bytes(d.Free), d.Dir, bytes(d.Floor)))
		}
	}
	c.Image.findings(&f)
	if c.AgentTrouble != "" {
		f.bad(agentMissing, "agent", "the program that runs inside guests is not beside the daemon: "+c.Agent, c.AgentTrouble, "install carrel, carreld and carrel-agent from one release, in one folder")
	}
	c.Keychain.findings(&f)
	c.Telemetry.findings(&f)
	for _, g := range c.Damaged {
		f.bad(guestDamaged, "guest", "guest "+g.Name+" was set aside: its state cannot be read", g.Cause, "carrel rm --force "+g.Name)
	}
	if len(c.Damaged) == 0 && c.Guests >= 0 {
		f.good("guests", fmt.Sprintf("the state of %d guests can be read", c.Guests))
	}
	return f
}

func (i Image) findings(f *findings) {
	build := "carrel image build"
	if i.Elsewhere {
		build = "carrel image import FILE, with a bundle that was built on Linux (docs/images.md)"
	}
	switch {
	case i.Missing:
		f.bad(imageMissing, "image", "there is no image "+i.Name+", from which guests start", i.Trouble, build)
	case i.Damaged:
		f.bad(imageDamaged, "image", "image "+i.Name+" is not what was built: no guest starts from it", i.Trouble, build)
	case i.Trouble != "":
		f.bad(imageDamaged, "image", "image "+i.Name+" cannot be used", i.Trouble, build)
	default:
		f.good("image", fmt.Sprintf("image %s is whole (kernel %s)", i.Name, i.Kernel))
	}
}

func (k Keychain) findings(f *findings) {
	const check = "keychain"
	switch {
	case k.Kind == "file":
		f.good(check, "secrets are kept in an encrypted file, as CARREL_SECRET_STORE=file asks")
	case k.Answers:
		f.good(check, k.System+" answers: it keeps secrets")
	case k.Kind == "keychain":
		f.bad(keychainNeed, check, "no secret can be kept: "+k.System+" does not answer, and CARREL_SECRET_STORE=keychain forbids the file in its stead", or(k.Trouble, "none is reached from the session that the daemon was started in"),
			"log in to the desktop session that the keychain belongs to, or start the daemon without CARREL_SECRET_STORE")
	default:
		f.note(keychainNone, check, k.System+" does not answer: new secrets go to an encrypted file, whose key lies beside it", or(k.Trouble, "none is reached from the session that the daemon was started in"),
			"log in to a desktop session with a keychain (sudo apt-get install gnome-keyring has one); or be content with the file: CARREL_SECRET_STORE=file says so")
	}
}

func bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func (t *Telemetry) findings(f *findings) {
	switch {
	case t == nil:
	case t.Endpoint == "":
		f.good("telemetry", "off: events and audit records leave this host for nobody")
	case t.Trouble != "":
		f.note(telemetryStalled, "telemetry", fmt.Sprintf("%s does not take what is sent to it; %d events wait, and nothing is lost while the log holds them", t.Endpoint, t.Waiting),
			t.Trouble, "see to the receiver, or to telemetry in policy.yaml: docs/telemetry.md")
	default:
		f.good("telemetry", fmt.Sprintf("on: events, audit records and figures go to %s; %d records were sent since the daemon's start, %d will never be, %d events wait", t.Endpoint, t.Sent, t.Dropped, t.Waiting))
	}
}
