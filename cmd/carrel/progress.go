package main

import (
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/carrel-vm/carrel/guest/api"
)

// progress shows how far long work is: bars on a terminal, one line per stage
// elsewhere, nothing with -q.
type progress struct {
	a     *app
	bars  *mpb.Progress // nil: no terminal
	bar   *mpb.Bar
	stage string
	line  atomic.Pointer[string]
}

func (a *app) progress() *progress {
	p := &progress{a: a}
	if !a.quiet && term.IsTerminal(int(a.err.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(40))
	}
	return p
}

// note says one line without disturbing the bar.
func (p *progress) note(line string) {
	if p.bars != nil {
		io.WriteString(p.bars, message(line, width(p.a.err)))
		return
	}
	p.a.note(line)
}

func (p *progress) update(m *api.Progress) {
	if p.a.quiet {
		return
	}
	if m.Stage != p.stage {
		p.stage = m.Stage
		p.begin(m)
	}
	line := safe(m.Line)
	p.line.Store(&line)
	if p.bar != nil && m.Total > 0 {
		p.bar.SetTotal(m.Total, false)
		p.bar.SetCurrent(min(m.Done, m.Total-1)) // a full bar ends itself
	}
}

// wait shows, on a terminal only, that something is being waited for whose end
// nobody can foresee.
func (p *progress) wait(what string) {
	if p.bars != nil {
		p.update(&api.Progress{Stage: what})
	}
}

// begin shows a new stage in the place of the last.
func (p *progress) begin(m *api.Progress) {
	p.drop()
	name := safe(m.Stage)
	if p.bars == nil {
		if m.Ahead > 0 { // that it waits says little without for what
			name += " " + safe(m.Line)
		}
		p.a.note(name)
		return
	}
	front := []decor.Decorator{decor.Name("carrel: "+name, decor.WCSyncSpaceR), decor.Elapsed(decor.ET_STYLE_MMSS)}
	const others = 44 // what stands beside it on a line, the bar at its shortest
	room := max(width(p.a.err)-others, 8)
	line := decor.Any(func(decor.Statistics) string {
		if s := p.line.Load(); s != nil && *s != "" {
			return " " + clip(*s, room)
		}
		return ""
	})
	if m.Total > 0 {
		p.bar = p.bars.New(m.Total, mpb.BarStyle(), mpb.PrependDecorators(front...), mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), line))
		return
	}
	p.bar = p.bars.New(0, mpb.SpinnerStyle().PositionLeft(), mpb.PrependDecorators(front...), mpb.AppendDecorators(line))
}

func (p *progress) drop() {
	if p.bar != nil {
		p.bar.Abort(true)
		p.bar.Wait()
		p.bar = nil
	}
}

// done takes the bar away, so that what follows stands alone.
func (p *progress) done() {
	p.drop()
	if p.bars != nil {
		p.bars.Wait()
	}
}
