package qemu

import "time"

// An emulated processor's time-stamp counter is the host's own (cpu_get_ticks,
// softmmu/cpu-timers.c). How fast it counts, the guest's kernel measures with an
// emulated clock chip, in some milliseconds of its boot. On a busy host that
// fails now and then ("Unable to calibrate against PIT"), and the guest's clock
// and timers then have steps of 4 ms. So it is measured out here and told.

// moment is what two clocks showed at once.
type moment struct {
	when  time.Time
	count uint64
	slack time.Duration // how long it took to read them
}

// readClocks reads both. It tries some times, for between the two it may be
// interrupted.
func readClocks() (best moment) {
	for i := range 16 {
		before := time.Now()
		count := readCounter()
		took := time.Since(before)
		if i == 0 || took < best.slack {
			best = moment{before.Add(took / 2), count, took}
		}
	}
	return best
}

// Bounds of a measurement: its error is a part of 5,000 at most, and a counter
// slower or faster than these is none. Over a long time the host may have slept,
// in which the two clocks differ.
const (
	counterError  = 5000
	slowestKHz    = 100_000
	fastestKHz    = 20_000_000
	longestSpread = 10 * time.Minute
)

// counterKHz is how fast the counter counts, in thousands a second; 0 if the two
// moments do not tell.
func counterKHz(from, to moment) int {
	spread := to.when.Sub(from.when)
	if spread <= 0 || spread > longestSpread || (from.slack+to.slack)*counterError > spread || to.count <= from.count {
		return 0
	}
	khz := int(float64(to.count-from.count) / float64(spread) * 1e6)
	if khz < slowestKHz || khz > fastestKHz {
		return 0
	}
	return khz
}
