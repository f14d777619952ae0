package agent

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strings"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

var errCertificate = errors.New("a certificate to trust is malformed")

// subjectHash is the name under which OpenSSL looks for a certificate:
// X509_NAME_hash of its subject, that is the first four bytes of the SHA-1 of
// the name's canonical form (crypto/x509/x_name.c, x509_name_canon).
func subjectHash(der []byte) (uint32, error) {
	outer := cryptobyte.String(der)
	var cert, tbs, subject cryptobyte.String
	if !outer.ReadASN1(&cert, asn1.SEQUENCE) || !outer.Empty() ||
		!cert.ReadASN1(&tbs, asn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(asn1.Tag(0).Constructed().ContextSpecific()) || // version
		!tbs.SkipASN1(asn1.INTEGER) || // serial number
		!tbs.SkipASN1(asn1.SEQUENCE) || // signature's algorithm
		!tbs.SkipASN1(asn1.SEQUENCE) || // issuer
		!tbs.SkipASN1(asn1.SEQUENCE) || // validity
		!tbs.ReadASN1(&subject, asn1.SEQUENCE) {
		return 0, errCertificate
	}
	var canon cryptobyte.Builder
	for !subject.Empty() {
		var set cryptobyte.String
		if !subject.ReadASN1(&set, asn1.SET) {
			return 0, errCertificate
		}
		var err error
		canon.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { err = canonicalSet(b, set) })
		if err != nil {
			return 0, err
		}
	}
	b, err := canon.Bytes()
	if err != nil {
		return 0, err
	}
	sum := sha1(b)
	return binary.LittleEndian.Uint32(sum[:]), nil
}

func canonicalSet(b *cryptobyte.Builder, set cryptobyte.String) error {
	for !set.Empty() {
		var pair, kind, value cryptobyte.String
		var tag asn1.Tag
		if !set.ReadASN1(&pair, asn1.SEQUENCE) || !pair.ReadASN1(&kind, asn1.OBJECT_IDENTIFIER) ||
			!pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
			return errCertificate
		}
		text, isText := decode(tag, value)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(kind) })
			if !isText {
				b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(value) })
				return
			}
			b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes(fold(text)) })
		})
	}
	return nil
}

// decode turns the types of text that OpenSSL compares as text into UTF-8.
func decode(tag asn1.Tag, b []byte) (string, bool) {
	const (
		visible   = asn1.Tag(26)
		universal = asn1.Tag(28)
		bmp       = asn1.Tag(30)
	)
	var s strings.Builder
	switch tag {
	case asn1.UTF8String:
		return string(b), true
	case asn1.PrintableString, asn1.T61String, asn1.IA5String, visible:
		for _, c := range b { // as Latin-1
			s.WriteRune(rune(c))
		}
	case bmp:
		units := make([]uint16, len(b)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(b[2*i:])
		}
		return string(utf16.Decode(units)), true
	case universal:
		for i := 0; i+4 <= len(b); i += 4 {
			s.WriteRune(rune(binary.BigEndian.Uint32(b[i:])))
		}
	default:
		return "", false
	}
	return s.String(), true
}

// fold lower-cases ASCII, drops the spaces around a text and makes those in it
// single ones (asn1_string_canon).
func fold(s string) []byte {
	space := func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		c := s[i]
		switch {
		case space(c):
			if len(out) > 0 && out[len(out)-1] != ' ' {
				out = append(out, ' ')
			}
			continue
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		out = append(out, c)
	}
	if n := len(out); n > 0 && out[n-1] == ' ' {
		out = out[:n-1]
	}
	return out
}

// sha1 is FIPS 180-4's, here for a file name. The standard library's brings all
// of its cryptography with it, which every start of a command would pay for:
// the agent is the program that becomes the command.
func sha1(b []byte) (sum [20]byte) {
	h := [5]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}
	n := uint64(len(b)) * 8
	b = append(append([]byte(nil), b...), 0x80)
	for len(b)%64 != 56 {
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint64(b, n)
	var w [80]uint32
	for ; len(b) > 0; b = b[64:] {
		for i := range 16 {
			w[i] = binary.BigEndian.Uint32(b[4*i:])
		}
		for i := 16; i < 80; i++ {
			w[i] = bits.RotateLeft32(w[i-3]^w[i-8]^w[i-14]^w[i-16], 1)
		}
		v := h
		for i, x := range w {
			var f, k uint32
			switch i / 20 {
			case 0:
				f, k = v[1]&v[2]|^v[1]&v[3], 0x5a827999
			case 1:
				f, k = v[1]^v[2]^v[3], 0x6ed9eba1
			case 2:
				f, k = v[1]&v[2]|v[1]&v[3]|v[2]&v[3], 0x8f1bbcdc
			default:
				f, k = v[1]^v[2]^v[3], 0xca62c1d6
			}
			v = [5]uint32{bits.RotateLeft32(v[0], 5) + f + v[4] + k + x, v[0], bits.RotateLeft32(v[1], 30), v[2], v[3]}
		}
		for i := range h {
			h[i] += v[i]
		}
	}
	for i, x := range h {
		binary.BigEndian.PutUint32(sum[4*i:], x)
	}
	return sum
}
