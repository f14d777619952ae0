package policy

import (
	"time"

	"gopkg.in/yaml.v3"
)

// Bounds of how long a guest is idle before something is done about it.
const (
	minIdle = time.Second
	maxIdle = 30 * 24 * time.Hour
)

// Idle says what becomes of a guest from which nobody wants anything. The zero
// value leaves it as it is.
type Idle struct {
	// Pause is after how long its processors stand still, and Stop after how long
	// it is stopped, both from the moment at which it became idle; 0: never.
	Pause, Stop time.Duration
}

// idle is about guests from which nobody wants anything.
func (r *reader) idle(n *yaml.Node, f *File) {
	r.mapping(n, "idle",
		field{"pause", func(v *yaml.Node) { f.Idle.Pause = r.duration(v, "idle.pause", minIdle, maxIdle) }},
		field{"stop", func(v *yaml.Node) { f.Idle.Stop = r.duration(v, "idle.stop", minIdle, maxIdle) }})
	if i := f.Idle; i.Pause > 0 && i.Stop > 0 && i.Stop <= i.Pause {
		r.problem(n, "idle.stop (%v) is not longer than idle.pause (%v), so that no guest would ever be paused (leave one out, or make stop the longer)", i.Stop, i.Pause)
	}
}

// duration reads a time with its units: 90s, 5m, 1h30m. 0 needs none, and says
// never.
func (r *reader) duration(n *yaml.Node, what string, low, high time.Duration) time.Duration {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" && n.Value == "0" {
		return 0
	}
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.problem(n, "%s is a time with its unit (90s, 5m, 1h), not %s", what, kindOf(n))
		return 0
	}
	v, err := time.ParseDuration(n.Value)
	if err != nil || v%time.Second != 0 {
		r.problem(n, "%s is a time in hours, minutes and seconds (90s, 5m, 1h30m), not %q", what, clip(n.Value))
		return 0
	}
	if v < low || v > high {
		r.problem(n, "%s is between %v and %v, not %q (0: never)", what, low, high, clip(n.Value))
		return 0
	}
	return v
}
