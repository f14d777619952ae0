package egress

import (
	"context"
	"fmt"
	"log/slog"
)

// hide replaces the values of the guest's secrets in a text that is to be
// recorded, shown or told. It comes before a text is shortened: a value that is
// cut would not be found. Nothing here puts a value into such a text; but servers
// are quoted, and a guest may have learned one by a way that nobody thought of.
func (s *Server) hide(text string) string { return s.current().edge.Redact(text) }

// hiding is a handler of log lines that hides values in what others hand on.
type hiding struct {
	slog.Handler
	hide func(string) string
}

func (h hiding) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, h.hide(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(h.attr(a))
		return true
	})
	return h.Handler.Handle(ctx, out)
}

func (h hiding) attr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, h.hide(v.String()))
	case slog.KindAny: // an error, mostly
		return slog.String(a.Key, h.hide(fmt.Sprint(v.Any())))
	case slog.KindGroup:
		var in []slog.Attr
		for _, m := range v.Group() {
			in = append(in, h.attr(m))
		}
		return slog.GroupAttrs(a.Key, in...)
	default:
		return a
	}
}

func (h hiding) WithAttrs(as []slog.Attr) slog.Handler {
	var out []slog.Attr
	for _, a := range as {
		out = append(out, h.attr(a))
	}
	return hiding{h.Handler.WithAttrs(out), h.hide}
}

func (h hiding) WithGroup(name string) slog.Handler {
	return hiding{h.Handler.WithGroup(name), h.hide}
}
