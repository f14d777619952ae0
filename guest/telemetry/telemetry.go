// Package telemetry sends records and figures to a receiver of OpenTelemetry's
// protocol: OTLP 1.x over HTTP, in protobuf, as
// https://opentelemetry.io/docs/specs/otlp/ has it.
//
// The SDK's exporters are not used: they keep what they send in memory and
// throw it away when there is too much, while here a log on the disk is sent
// from where the receiver has it; and they bring gRPC with them (in a program that
// does nothing else, 6.7 MB of code and 6.6 MB of memory; the protocol's
// messages alone: 0.1 MB and nothing that could be measured).
package telemetry

import "time"

// Bounds of one request.
const (
	// MaxRecords and MaxBytes bound the records that go together.
	MaxRecords = 256
	MaxBytes   = 1 << 20
	// MaxBody and MaxValue bound a record's body and one attribute's text, in
	// bytes; MaxList bounds an attribute's list. What is longer is cut, and
	// the record says so.
	MaxBody  = 64 << 10
	MaxValue = 4 << 10
	MaxList  = 128
)

// Record is one thing that happened.
type Record struct {
	Time time.Time
	// Name is what kind of thing: "carrel.task".
	Name string
	// Warn marks what somebody should look at: it was refused, or is missing.
	Warn bool
	Body string
	// Attrs are told in this order.
	Attrs []Attr
}

// Attr is a named value: a string, an int64, a bool or a []string. Others are
// left out.
type Attr struct {
	Key   string
	Value any
}

// Metric is a figure, with a point for each of its attributes' values.
type Metric struct {
	Name, Unit, About string
	// Sum says that it counts up from the start; otherwise it is what is so now.
	Sum    bool
	Points []Point
}

// Point is one value.
type Point struct {
	Value int64
	Attrs []Attr
}

// Size is about how many bytes a record takes.
func (r *Record) Size() int {
	n := 64 + len(r.Name) + len(r.Body)
	for _, a := range r.Attrs {
		n += 16 + len(a.Key)
		switch v := a.Value.(type) {
		case string:
			n += len(v)
		case []string:
			for _, s := range v {
				n += 4 + len(s)
			}
		}
	}
	return n
}

// Bound cuts what is too long, and has f, which takes out what must not leave,
// look at all text first.
func (r *Record) Bound(f func(string) string) {
	cut := false
	one := func(s string, most int) string {
		if s = f(s); len(s) > most {
			s, cut = s[:most], true
		}
		return valid(s)
	}
	r.Body = one(r.Body, MaxBody)
	for i, a := range r.Attrs {
		switch v := a.Value.(type) {
		case string:
			r.Attrs[i].Value = one(v, MaxValue)
		case []string:
			if len(v) > MaxList {
				v, cut = v[:MaxList], true
			}
			out, room := make([]string, 0, len(v)), MaxBody
			for _, s := range v {
				s = one(s, min(MaxValue, room))
				room -= len(s)
				out = append(out, s)
			}
			r.Attrs[i].Value = out
		}
	}
	if cut {
		r.Attrs = append(r.Attrs, Attr{"carrel.truncated", true})
	}
}
