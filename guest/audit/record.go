package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// record is one line.
type record struct {
	Seq  uint64          `json:"seq"`
	Time time.Time       `json:"time"`
	Kind string          `json:"kind"`
	Prev string          `json:"prev"`
	Data json.RawMessage `json:"data"`
	Sum  string          `json:"sum"`
}

// encode makes the JSON object of a record's fields: printable ASCII, without
// secrets, at most MaxRecord bytes before it is escaped.
func encode(fields any, redact func(string) string) ([]byte, error) {
	var b []byte
	var err error
	switch f := fields.(type) {
	case nil:
		b = []byte("{}")
	case proto.Message:
		b, err = protojson.Marshal(f)
	default:
		b, err = json.Marshal(f)
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, err
	}
	if out.Len() == 0 || out.Bytes()[0] != '{' {
		return nil, errors.New("the fields of a record must be an object")
	}
	text := out.String()
	if redact != nil {
		text = redact(text)
	}
	if len(text) > MaxRecord {
		begin := strings.ToValidUTF8(text[:MaxRecord/2], "")
		b, err := json.Marshal(map[string]any{"too_long": len(text), "begin": begin})
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	if !json.Valid([]byte(text)) {
		// A value with quotes in it was taken for part of the object's form.
		text = `{"withheld":"without secrets it is not JSON"}`
	}
	return ASCII(text), nil
}

// ASCII escapes in JSON whatever a terminal or a reader could take for something
// else: controls, marks of direction, look-alikes. Outside of strings JSON has
// none of them.
func ASCII(s string) []byte {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		switch {
		case r >= 0x20 && r < 0x7f:
			b = append(b, byte(r))
		case r < utf8.RuneSelf || r <= 0xffff:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = fmt.Appendf(b, `\u%04x\u%04x`, (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00)
		}
	}
	return b
}

const sumField = `,"sum":"`

// compose makes a line, without its newline. kind and prev need no escaping.
func compose(seq uint64, t time.Time, kind, prev string, data []byte) []byte {
	b := make([]byte, 0, len(data)+256)
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"time":"`...)
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","kind":"`...)
	b = append(b, kind...)
	b = append(b, `","prev":"`...)
	b = append(b, prev...)
	b = append(b, `","data":`...)
	b = append(b, data...)
	sum := hashOf(b)[:16]
	b = append(b, sumField...)
	b = append(b, sum...)
	return append(b, `"}`...)
}

// parse reads a line that compose made; one that it did not make, however alike,
// is an error.
func parse(line []byte) (*record, error) {
	if len(line) > maxLine {
		return nil, fmt.Errorf("it has more than %d bytes", maxLine)
	}
	for _, c := range line {
		if c < 0x20 || c >= 0x7f {
			return nil, errors.New("it has bytes that no record has")
		}
	}
	r := new(record)
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(r); err != nil || dec.More() {
		return nil, errors.New("it is not a record")
	}
	if p, err := hex.DecodeString(r.Prev); err != nil || len(p) != 32 || len(r.Data) == 0 || r.Data[0] != '{' || r.Kind == "" || len(r.Kind) > maxKind {
		return nil, errors.New("it is not a whole record")
	}
	if !bytes.Equal(compose(r.Seq, r.Time, r.Kind, r.Prev, r.Data), line) {
		return nil, errors.New("its sum is not that of its content")
	}
	return r, nil
}
