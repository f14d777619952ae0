package egress

import (
	"fmt"
	"strings"
)

// Bounds of the head of a request: the request line and its fields.
const (
	// maxHead is its length in bytes, line ends included.
	maxHead = 64 << 10
	// maxFields is how many fields it, or a trailer, may have.
	maxFields = 200
	// maxMethod is the longest method. RFC 9110 and its registry stay below.
	maxMethod = 32
	// maxLengthDigits keeps a length well within 63 bits.
	maxLengthDigits = 18
)

// framing says how the body of a request is delimited.
type framing struct {
	// length of the body; meaningless if chunked.
	length  int64
	chunked bool
	// raw: the client asks for a WebSocket, so that what follows may be anything.
	raw bool
}

// malformed says what is wrong with the form of a request, in a sentence for
// people. Such a request is never judged and never sent.
type malformed string

func (m malformed) Error() string { return string(m) }

// readHeadLines checks the head of an HTTP/1 request: RFC 9112, sections 2 to 6,
// without anything that two readers could read in two ways. What net/http takes
// beyond it (bare line feeds, folded lines, repeated or listed lengths, a length
// beside a transfer coding) is refused. lines come without their line ends, the
// empty one at the end left out; there is at least one.
func readHeadLines(lines []string) (framing, error) {
	var f framing
	target, proto, err := readRequestLine(lines[0])
	if err != nil {
		return f, err
	}
	if len(lines)-1 > maxFields {
		return f, malformed(fmt.Sprintf("it has more than %d header fields", maxFields))
	}
	var host, length, coding, upgrade []string
	for _, line := range lines[1:] {
		name, value, err := readField(line)
		if err != nil {
			return f, err
		}
		switch strings.ToLower(name) {
		case "host":
			host = append(host, value)
		case "content-length":
			length = append(length, value)
		case "transfer-encoding":
			coding = append(coding, value)
		case "upgrade":
			upgrade = append(upgrade, value)
		}
	}
	switch {
	case len(host) != 1:
		return f, malformed("it has no Host, or more than one")
	case !agrees(target, host[0]):
		return f, malformed("its target names another host than its Host field")
	case len(length) > 1 || len(coding) > 1 || len(length)+len(coding) > 1:
		return f, malformed("it says the length of its body more than once")
	case len(coding) == 1 && (!strings.EqualFold(coding[0], "chunked") || proto != "HTTP/1.1"):
		return f, malformed("its transfer coding is not chunked")
	}
	f.chunked = len(coding) == 1
	if len(length) == 1 {
		var ok bool
		if f.length, ok = readLength(length[0]); !ok {
			return f, malformed("its Content-Length is not a plain decimal number")
		}
	}
	if len(upgrade) > 0 && isWebSocket(upgrade) {
		if f.chunked || f.length != 0 {
			return f, malformed("it asks for a WebSocket and has a body")
		}
		f.raw = true
	}
	return f, nil
}

// readRequestLine reads the first line of a request: RFC 9112, 3.
func readRequestLine(line string) (target, proto string, err error) {
	method, rest, ok := strings.Cut(line, " ")
	target, proto, ok2 := strings.Cut(rest, " ")
	switch {
	case line == "":
		err = malformed("it begins with an empty line")
	case !ok || !ok2 || strings.Contains(proto, " "):
		err = malformed("its first line is not a method, a target and a version")
	case !goodMethod(method):
		err = malformed("its method is not a word in upper case")
	case proto != "HTTP/1.1" && proto != "HTTP/1.0":
		err = malformed("its version is neither HTTP/1.1 nor HTTP/1.0")
	case !printable(target):
		err = malformed("its target is empty or has characters that have to be escaped")
	}
	return target, proto, err
}

// readField splits a field line: RFC 9112, 5.
func readField(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !isToken(name) {
		return "", "", malformed("a header field has no proper name, or a line was folded")
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", "", malformed("a header field has a control character")
		}
	}
	return name, value, nil
}

// agrees says whether a target that is itself a URL names the host that the Host
// field does. RFC 9112, 3.2.2 would have it override the field; here both have
// to say the same.
func agrees(target, host string) bool {
	_, rest, ok := strings.Cut(target, "://")
	if !ok || strings.HasPrefix(target, "/") {
		return true
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	return strings.EqualFold(rest, host)
}

// isWebSocket says whether the values of an Upgrade field ask for a WebSocket
// and nothing else.
func isWebSocket(values []string) bool {
	return len(values) == 1 && strings.EqualFold(strings.TrimSpace(values[0]), "websocket")
}

// goodMethod is stricter than RFC 9110, 9.1: methods are case-sensitive, but not
// every server keeps to it, so "delete" must not pass where DELETE may not.
func goodMethod(m string) bool {
	if m == "" || len(m) > maxMethod || m[0] < 'A' || m[0] > 'Z' {
		return false
	}
	for i := range len(m) {
		if c := m[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// isToken is RFC 9110, 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// printable: not empty, and nothing but visible ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// readLength reads the value of a Content-Length.
func readLength(s string) (n int64, ok bool) {
	if s == "" || len(s) > maxLengthDigits {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// maxChunkDigits keeps a chunk's size well within 63 bits.
const maxChunkDigits = 12

// readChunkSize reads a chunk's first line. Chunk extensions are refused: nobody
// uses them but to smuggle or to flood.
func readChunkSize(line string) (n int64, err error) {
	if line == "" || len(line) > maxChunkDigits {
		return 0, malformed("the size of a chunk is not a plain number, or it has an extension")
	}
	for i := range len(line) {
		c := line[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, malformed("the size of a chunk is not a plain number, or it has an extension")
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}
