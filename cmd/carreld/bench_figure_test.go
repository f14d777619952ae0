//go:build bench

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/client"
)

// figures are those of one run, on any host.
type figures struct {
	*testing.T
	// host and commit are what a figure means nothing without.
	host, commit string
	out          io.Writer
	all          []figure
}

// commit is what the working copy is at.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// figure is one measured number, as make bench prints it.
type figure struct {
	Name string `json:"name"`
	// Value is the median where N is more than one.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// P50, P95 and P99 are of N; Low and High are the least and the greatest.
	P50  float64 `json:"p50,omitempty"`
	P95  float64 `json:"p95,omitempty"`
	P99  float64 `json:"p99,omitempty"`
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`
	// RatioTo names the figure that a ratio is to.
	RatioTo string `json:"ratio_to,omitempty"`
	Goal    string `json:"goal,omitempty"`
	Met     *bool  `json:"met,omitempty"`
	N       int    `json:"n"`
	Host    string `json:"host"`
	Commit  string `json:"commit"`
	// How is what was done, in a sentence without its end.
	How string `json:"how"`
}

// limit is a goal; the zero value is none.
type limit struct {
	least bool // else most
	bound float64
}

func most(x float64) limit  { return limit{bound: x} }
func least(x float64) limit { return limit{least: true, bound: x} }

// none is no goal at all, beside a goal of zero.
func (l limit) none() bool { return l == limit{} }

// nothing is the goal that a figure be 0.
var nothing = limit{bound: math.SmallestNonzeroFloat64}

// add finishes a figure, prints it and keeps it.
func (b *figures) add(f figure, goal limit) {
	f.Host, f.Commit = b.host, b.commit
	for _, x := range []*float64{&f.Value, &f.P50, &f.P95, &f.P99, &f.Low, &f.High} {
		*x = round(*x)
	}
	if !goal.none() {
		met := f.Value <= goal.bound
		f.Goal = fmt.Sprintf("≤ %g", goal.bound)
		switch {
		case goal.least:
			met, f.Goal = f.Value >= goal.bound, fmt.Sprintf("≥ %g", goal.bound)
		case goal == nothing:
			f.Goal = "0"
		}
		f.Met = &met
		if !met {
			b.Logf("missed: %s is %g %s, the goal is %s", f.Name, f.Value, f.Unit, f.Goal)
		}
	}
	line, err := json.Marshal(f)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Fprintf(b.out, "%s\n", line)
	b.all = append(b.all, f)
}

// median adds the median of what was measured, with how far it spreads.
func (b *figures) median(name, unit string, values []float64, goal limit, how string) {
	s := slices.Sorted(slices.Values(values))
	b.add(figure{Name: name, Value: quantile(s, 0.5), Unit: unit, Low: s[0], High: s[len(s)-1], N: len(s), How: how}, goal)
}

// latency adds many measurements of one thing, with p50 and p95.
func (b *figures) latency(name, unit string, values []float64, goal limit, how string) {
	s := slices.Sorted(slices.Values(values))
	p50, p95 := quantile(s, 0.5), quantile(s, 0.95)
	b.add(figure{Name: name, Value: p50, Unit: unit, P50: p50, P95: p95, Low: s[0], High: s[len(s)-1], N: len(s), How: how}, goal)
}

// tail adds so many measurements of one thing, in ms, that p99 says something.
func (b *figures) tail(name string, values []float64, goal limit, how string) {
	s := slices.Sorted(slices.Values(values))
	f := figure{Name: name, Unit: "ms", P50: quantile(s, 0.5), P95: quantile(s, 0.95), P99: quantile(s, 0.99), Low: s[0], High: s[len(s)-1], N: len(s), How: how}
	f.Value = f.P50
	b.add(f, goal)
}

// ratio adds the median of the ratios of pairs, each measured back to back.
func (b *figures) ratio(name, to string, ours, peer []float64, goal limit, how string) {
	var rs []float64
	for i := range ours {
		rs = append(rs, ours[i]/peer[i])
	}
	slices.Sort(rs)
	b.add(figure{Name: name, Value: quantile(rs, 0.5), Unit: "ratio", RatioTo: to, Low: rs[0], High: rs[len(rs)-1], N: len(rs), How: how}, goal)
}

// quantile of sorted values, between the two nearest.
func quantile(s []float64, q float64) float64 {
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[i] + (s[i+1]-s[i])*(at-float64(i))
}

// round keeps three digits: what follows them is noise.
func round(x float64) float64 {
	if x == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(x))))
	if scale < 1 {
		return math.Round(x)
	}
	return math.Round(x*scale) / scale
}

// ms is a duration in milliseconds.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// took runs a command and returns its time in milliseconds.
func (b *figures) took(cmd *exec.Cmd) float64 {
	b.Helper()
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return ms(time.Since(begin))
}

// task runs a task to its end and returns its time in milliseconds.
func (b *figures) task(c *client.Client, t client.Task) float64 {
	begin := time.Now()
	p, err := c.StartTask(b.Context(), t)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		b.Fatalf("%q: %v", t.Args, err)
	}
	return ms(time.Since(begin))
}

// turns measures two things n times in turn, each first every other time, after
// one turn that does not count.
func (b *figures) turns(n int, ours, peer func() float64) (os, ps []float64) {
	ours()
	peer()
	for i := range n {
		if i%2 == 0 {
			os, ps = append(os, ours()), append(ps, peer())
		} else {
			ps, os = append(ps, peer()), append(os, ours())
		}
	}
	return os, ps
}

// rounds measures several sides n times in turn, each first once in a while,
// after one round that does not count.
func (b *figures) rounds(n int, sides ...func() float64) [][]float64 {
	all := make([][]float64, len(sides))
	for round := range n + 1 {
		for i := range sides {
			at := (round + i) % len(sides)
			if x := sides[at](); round > 0 {
				all[at] = append(all[at], x)
			}
		}
	}
	return all
}

// claimGoal bounds the claim of a warm guest, in ms.
const claimGoal = 100

// claimed is what the claim took of a run from the pool, in ms, by what `carrel run
// --timings --json` said.
func (b *figures) claimed(said string) float64 {
	b.Helper()
	lines := strings.Split(strings.TrimSpace(said), "\n")
	var trace struct {
		Spans []struct{ Name, BeginNanos, EndNanos string }
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &trace); err != nil {
		b.Fatalf("%v: %s", err, said)
	}
	for _, s := range trace.Spans {
		if s.Name == "claimed from the pool" {
			from, err := strconv.ParseInt(s.BeginNanos, 10, 64)
			to, err2 := strconv.ParseInt(s.EndNanos, 10, 64)
			if err != nil || err2 != nil {
				b.Fatalf("%+v", s)
			}
			return ms(time.Duration(to - from))
		}
	}
	b.Fatalf("the run was not from the pool: %s", said)
	return 0
}

// rows are the figures as those of a table of Markdown's, under its head.
func (b *figures) rows() string {
	var s strings.Builder
	s.WriteString("| figure | value | from – to, or p95 | goal | n | how |\n|---|---|---|---|---|---|\n")
	for _, f := range b.all {
		spread, goal, value := "", f.Goal, fmt.Sprintf("%g %s", f.Value, f.Unit)
		switch {
		case f.P99 != 0:
			spread = fmt.Sprintf("p95 %g, p99 %g", f.P95, f.P99)
		case f.P95 != 0:
			spread = fmt.Sprintf("p95 %g", f.P95)
		case f.N > 1:
			spread = fmt.Sprintf("%g – %g", f.Low, f.High)
		}
		if f.Unit == "ratio" {
			value = fmt.Sprintf("**%g** × `%s`", f.Value, f.RatioTo)
		}
		if f.Met != nil && !*f.Met {
			goal += " **missed**"
		} else if f.Met != nil {
			goal += " met"
		}
		fmt.Fprintf(&s, "| `%s` | %s | %s | %s | %d | %s |\n", f.Name, value, spread, goal, f.N, f.How)
	}
	return s.String()
}
