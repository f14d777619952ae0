package images

import (
	"runtime"
	"strings"
)

// BuildOptions say what to build.
type BuildOptions struct {
	Name string
	// Arch is what the image is for, as GOARCH; empty: this host.
	Arch string
	// Recipes is a folder of recipes, kernel/ and default/; empty means those inside this program.
	Recipes string
	// Agent is the path of the static carrel-agent that becomes the guest's PID 1. That of another
	// architecture than the host's is expected beside it, see AgentFor.
	Agent string
	// Progress, if set, is called from the goroutine that called Build and must not block for long.
	Progress func(Event)
}

// Event is one step of a build. Stage is "wait", "kernel", "root", "initrd" or "image"; Done and
// Total count the steps of that stage, and Total is 0 where nobody knows. Line is for people,
// one line of printable text.
type Event struct {
	Stage       string
	Done, Total int64
	Line        string
}

// AgentFor is the path of the agent for an architecture, where that of this host's own is at agent: beside it, and
// called after what it is for.
func AgentFor(agent, arch string) string {
	if arch == "" || arch == runtime.GOARCH {
		return agent
	}
	return agent + "-" + arch
}

// plain makes a child's line safe to show: one line, no control characters, of bounded length.
func plain(s string) string {
	const most = 300
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= most {
			break
		}
		if r == '\t' {
			r = ' '
		}
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\ufffd' || r == '\u2028' || r == '\u2029' || (r >= '\u202a' && r <= '\u202e') {
			continue
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}
