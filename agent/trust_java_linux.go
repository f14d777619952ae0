package agent

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// keystores are where the usual distributions and images have Java's list of
// certificates. Most of them are links to the first.
var keystores = []string{
	"/etc/ssl/certs/java/cacerts",
	"/etc/pki/ca-trust/extracted/java/cacerts",
	"/usr/lib/jvm/*/lib/security/cacerts",
	"/usr/lib/jvm/*/jre/lib/security/cacerts",
	"/opt/java/*/lib/security/cacerts",
	"/opt/*/lib/security/cacerts",
	"/usr/local/*/lib/security/cacerts",
}

// maxKeystore is the largest keystore that is read, in bytes; Java's own has
// 200 KB.
const maxKeystore = 16 << 20

// trustJava adds certs to each of Java's lists, in place of those of an earlier
// start. A JVM takes a second to start, so this does without keytool.
func trustJava(root string, certs []certificate) error {
	done := make(map[string]bool)
	for _, k := range keystores {
		found, err := filepath.Glob(root + k)
		if err != nil {
			return err
		}
		for _, f := range found {
			real, err := filepath.EvalSymlinks(f)
			if err != nil || done[real] {
				continue // a link that leads nowhere is no list
			}
			done[real] = true
			if err := addToKeystore(real, certs); err != nil {
				return fmt.Errorf("add to Java's certificates in %s: %w", f, err)
			}
		}
	}
	return nil
}

func addToKeystore(path string, certs []certificate) error {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxKeystore {
		return err
	}
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	content, ok := jks(old, certs)
	if !ok {
		content, ok = pkcs12(old, certs)
	}
	// Of another form, or under a password: somebody's own, and left alone.
	if !ok || bytes.Equal(content, old) {
		return nil
	}
	return place(path, string(content))
}

func keystoreAlias(i int) string { return fmt.Sprintf("%s%d", ourName, i) }

// JKS, as sun.security.provider.JavaKeyStore writes it.
const (
	jksMagic   = 0xfeedfeed
	jksVersion = 2
	jksKey     = 1
	jksCert    = 2
	jksDigest  = 20
)

// jks returns a keystore with certs instead of those that have our names.
func jks(old []byte, certs []certificate) ([]byte, bool) {
	if len(old) < 12+jksDigest || binary.BigEndian.Uint32(old) != jksMagic || binary.BigEndian.Uint32(old[4:]) != jksVersion {
		return nil, false
	}
	s := cryptobyte.String(old[12 : len(old)-jksDigest])
	var kept []byte
	n := uint32(0)
	for range binary.BigEndian.Uint32(old[8:]) {
		begin := []byte(s)
		alias, ok := skipJKS(&s)
		if !ok {
			return nil, false
		}
		if !strings.HasPrefix(alias, ourName) {
			kept = append(kept, begin[:len(begin)-len(s)]...)
			n++
		}
	}
	if !s.Empty() {
		return nil, false
	}
	for i, c := range certs {
		alias := keystoreAlias(i)
		kept = binary.BigEndian.AppendUint32(kept, jksCert)
		kept = append(binary.BigEndian.AppendUint16(kept, uint16(len(alias))), alias...)
		kept = binary.BigEndian.AppendUint64(kept, 0) // made in 1970
		kept = append(binary.BigEndian.AppendUint16(kept, 5), "X.509"...)
		kept = append(binary.BigEndian.AppendUint32(kept, uint32(len(c.der))), c.der...)
		n++
	}
	b := binary.BigEndian.AppendUint32(bytes.Clone(old[:8]), n)
	b = append(b, kept...)
	// The password of every such list. What is under another is not a list of
	// certificates to trust; Java itself asks for none.
	var salted []byte
	for _, c := range "changeit" {
		salted = append(salted, 0, byte(c))
	}
	sum := sha1(append(append(salted, "Mighty Aphrodite"...), b...))
	return append(b, sum[:]...), true
}

// skipJKS reads one entry and returns its name.
func skipJKS(s *cryptobyte.String) (alias string, ok bool) {
	var kind uint32
	var name cryptobyte.String
	if !s.ReadUint32(&kind) || !s.ReadUint16LengthPrefixed(&name) || !s.Skip(8) {
		return "", false
	}
	cert := func() bool {
		var form cryptobyte.String
		var n uint32
		return s.ReadUint16LengthPrefixed(&form) && s.ReadUint32(&n) && n <= uint32(len(*s)) && s.Skip(int(n))
	}
	switch kind {
	case jksCert:
		return string(name), cert()
	case jksKey:
		var n, chain uint32
		if !s.ReadUint32(&n) || n > uint32(len(*s)) || !s.Skip(int(n)) || !s.ReadUint32(&chain) || chain > uint32(len(*s)) {
			return "", false
		}
		for range chain {
			if !cert() {
				return "", false
			}
		}
		return string(name), true
	}
	return "", false
}

// PKCS #12 (RFC 7292), as newer JDKs have it: neither encrypted nor signed.
var (
	oidData         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidCertBag      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 3}
	oidX509         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 22, 1}
	oidFriendlyName = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 20}
	// Java takes a certificate for trusted that has this, for any use.
	oidTrusted = asn1.ObjectIdentifier{2, 16, 840, 1, 113894, 746875, 1, 1}
	oidAnyUse  = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
)

var explicit0 = cbasn1.Tag(0).Constructed().ContextSpecific()

// pkcs12 returns a keystore with certs in a last part of their own.
func pkcs12(old []byte, certs []certificate) ([]byte, bool) {
	outer := cryptobyte.String(old)
	var pfx, info, wrapped, octets, safes cryptobyte.String
	var version int64
	var kind asn1.ObjectIdentifier
	if !outer.ReadASN1(&pfx, cbasn1.SEQUENCE) || !outer.Empty() || !pfx.ReadASN1Integer(&version) || version != 3 ||
		!pfx.ReadASN1(&info, cbasn1.SEQUENCE) || !pfx.Empty() || // what follows would be a signature
		!info.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidData) || !info.ReadASN1(&wrapped, explicit0) ||
		!wrapped.ReadASN1(&octets, cbasn1.OCTET_STRING) || !octets.ReadASN1(&safes, cbasn1.SEQUENCE) || !octets.Empty() {
		return nil, false
	}
	var parts [][]byte
	for !safes.Empty() {
		var part cryptobyte.String
		if !safes.ReadASN1Element(&part, cbasn1.SEQUENCE) {
			return nil, false
		}
		if !bytes.Contains(part, bmpString(keystoreAlias(0))) {
			parts = append(parts, part)
		}
	}
	type builder = cryptobyte.Builder
	data := func(b *builder, content func(b *builder)) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(explicit0, func(b *builder) { b.AddASN1(cbasn1.OCTET_STRING, content) })
		})
	}
	var b builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
		b.AddASN1Int64(version)
		data(b, func(b *builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
				for _, p := range parts {
					b.AddBytes(p)
				}
				data(b, func(b *builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
						for i, c := range certs {
							addCertBag(b, keystoreAlias(i), c.der)
						}
					})
				})
			})
		})
	})
	content, err := b.Bytes()
	return content, err == nil
}

func addCertBag(b *cryptobyte.Builder, alias string, der []byte) {
	type builder = cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
		b.AddASN1ObjectIdentifier(oidCertBag)
		b.AddASN1(explicit0, func(b *builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
				b.AddASN1ObjectIdentifier(oidX509)
				b.AddASN1(explicit0, func(b *builder) { b.AddASN1OctetString(der) })
			})
		})
		b.AddASN1(cbasn1.SET, func(b *builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
				b.AddASN1ObjectIdentifier(oidFriendlyName)
				b.AddASN1(cbasn1.SET, func(b *builder) { b.AddBytes(bmpString(alias)) })
			})
			b.AddASN1(cbasn1.SEQUENCE, func(b *builder) {
				b.AddASN1ObjectIdentifier(oidTrusted)
				b.AddASN1(cbasn1.SET, func(b *builder) { b.AddASN1ObjectIdentifier(oidAnyUse) })
			})
		})
	})
}

// bmpString is an encoded BMPString of ASN.1.
func bmpString(s string) []byte {
	b := []byte{30, byte(2 * len(s))}
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}
