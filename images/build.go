package images

import "strings"

// BuildOptions say what to build.
type BuildOptions struct {
	Name string
	// Recipes is a folder of recipes, kernel/ and default/; empty means those inside this program.
	Recipes string
	// Agent is the path of the static carrel-agent that becomes the guest's PID 1.
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
