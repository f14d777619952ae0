package review

import (
	"bufio"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// gitPack is a pack of the guest's, of version 2 (gitformat-pack(5)). Its index
// is not looked at: each object's name is what we find by hashing it.
type gitPack struct {
	g    *gitImport
	file *os.File
	size int64
	at   map[int64]packed
	ids  map[gitID]int64
	// cache has the last objects that others were made from.
	cache  map[int64]packedObject
	cached int64
}

// packed is an entry of a pack.
type packed struct {
	kind   uint8 // gitKind, or a delta
	size   int64 // inflated
	data   int64 // where the deflated bytes begin
	base   int64 // of a delta by offset
	baseID gitID // of a delta by name
}

type packedObject struct {
	kind    gitKind
	content []byte
}

const (
	packOfsDelta, packRefDelta = 6, 7
	// packCache is in bytes.
	packCache = 96 << 20
)

func (p *gitPack) close() { p.file.Close() }

// counter tells how many bytes were read, and gives flate no more than it needs.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// loadPack reads a pack through, and hashes each of its objects.
func (g *gitImport) loadPack(e *Entry) error {
	f, err := g.t.Store.Blob(e.Blob)
	if err != nil {
		return err
	}
	p := &gitPack{g: g, file: f, size: e.Size, at: map[int64]packed{}, ids: map[gitID]int64{}, cache: map[int64]packedObject{}}
	g.packs = append(g.packs, p)
	in := &counter{r: bufio.NewReaderSize(io.NewSectionReader(f, 0, e.Size), 64<<10)}
	var head [12]byte
	if _, err := io.ReadFull(in, head[:]); err != nil || string(head[:8]) != "PACK\x00\x00\x00\x02" {
		return errors.New("it is no pack of version 2")
	}
	count := binary.BigEndian.Uint32(head[8:])
	if int64(count) > maxGitObjects || int64(len(g.objects))+int64(count) > maxGitObjects {
		return fmt.Errorf("it says that it has %d objects; %d are possible", count, maxGitObjects)
	}
	var order []int64
	for range count {
		if err := g.ctx.Err(); err != nil {
			return err
		}
		at := in.n
		if err := p.entry(in, at); err != nil {
			return fmt.Errorf("at %d: %w", at, err)
		}
		order = append(order, at)
	}
	// A delta by name may come before what it is made from; such rounds end
	// when one finds nothing new.
	for len(order) > 0 {
		var later []int64
		for _, at := range order {
			if err := g.ctx.Err(); err != nil {
				return err
			}
			kind, content, err := p.object(at)
			if errors.Is(err, errNoBase) {
				later = append(later, at)
				continue
			}
			if err != nil {
				return fmt.Errorf("at %d: %w", at, err)
			}
			id, err := hashObject(kind, content)
			if err != nil {
				return err
			}
			p.ids[id] = at
			if _, is := g.objects[id]; !is {
				g.objects[id] = gitSource{pack: p, at: at}
			}
		}
		if len(later) == len(order) {
			return errors.New("it lacks objects that others are made from")
		}
		order = later
	}
	return nil
}

// packHead reads the head of the entry at a place.
func packHead(in *counter, at int64) (x packed, err error) {
	start := in.n
	b, err := in.ReadByte()
	if err != nil {
		return x, err
	}
	x = packed{kind: b >> 4 & 7, size: int64(b & 15)}
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = in.ReadByte(); err != nil {
			return x, err
		}
		if shift > 46 {
			return x, errors.New("its size is too large")
		}
		x.size |= int64(b&0x7f) << shift
	}
	switch x.kind {
	case uint8(gitCommit), uint8(gitTree), uint8(gitBlob), uint8(gitTag):
	case packOfsDelta:
		var back int64
		for n := 0; ; n++ {
			if b, err = in.ReadByte(); err != nil {
				return x, err
			}
			if n > 0 {
				back++
			}
			if back > 1<<48 {
				return x, errors.New("it is made from nothing")
			}
			back = back<<7 | int64(b&0x7f)
			if b&0x80 == 0 {
				break
			}
		}
		if x.base = at - back; back <= 0 || x.base < 0 {
			return x, errors.New("it is made from nothing")
		}
	case packRefDelta:
		if _, err := io.ReadFull(in, x.baseID[:]); err != nil {
			return x, err
		}
	default:
		return x, fmt.Errorf("an entry of type %d", x.kind)
	}
	x.data = at + in.n - start
	return x, nil
}

// entry reads an entry, passing over its bytes.
func (p *gitPack) entry(in *counter, at int64) error {
	x, err := packHead(in, at)
	if err != nil {
		return err
	}
	if _, is := p.at[x.base]; x.kind == packOfsDelta && !is {
		return errors.New("it is made from nothing")
	}
	if err := p.g.take(x.size); err != nil {
		return err
	}
	z, err := zlib.NewReader(in)
	if err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(z, x.size+1)); err != nil || n != x.size {
		return fmt.Errorf("it says that it has %d bytes, and has others (%v)", x.size, err)
	}
	p.at[at] = x
	return nil
}

var errNoBase = errors.New("what it is made from is not known yet")

// object makes an object, from others where it is a delta.
func (p *gitPack) object(at int64) (gitKind, []byte, error) {
	var deltas [][]byte
	var o packedObject
	for from := at; ; {
		x, is := p.at[from]
		if !is {
			return 0, nil, errors.New("there is no object at this place")
		}
		if c, is := p.cache[from]; is {
			o = c
			break
		}
		raw, err := p.raw(&x)
		if err != nil {
			return 0, nil, err
		}
		if x.kind < packOfsDelta {
			o = packedObject{gitKind(x.kind), raw}
			break
		}
		if deltas = append(deltas, raw); len(deltas) > maxGitDelta {
			return 0, nil, fmt.Errorf("more than %d deltas upon each other", maxGitDelta)
		}
		if from = x.base; x.kind == packRefDelta {
			base, is := p.ids[x.baseID]
			if !is {
				return 0, nil, errNoBase
			}
			from = base
		}
	}
	for n := len(deltas) - 1; n >= 0; n-- {
		content, err := p.g.applyDelta(o.content, deltas[n])
		if err != nil {
			return 0, nil, err
		}
		o.content = content
	}
	if p.cached += int64(len(o.content)); p.cached > packCache {
		clear(p.cache)
		p.cached = int64(len(o.content))
	}
	p.cache[at] = o
	return o.kind, o.content, nil
}

func (p *gitPack) raw(x *packed) ([]byte, error) {
	z, err := zlib.NewReader(bufio.NewReader(io.NewSectionReader(p.file, x.data, p.size-x.data)))
	if err != nil {
		return nil, err
	}
	return p.g.inflated(z, x.size)
}

// applyDelta makes a content from another one: copies of parts, and what is new.
func (g *gitImport) applyDelta(base, d []byte) ([]byte, error) {
	from, d, ok := deltaSize(d)
	to, d, ok2 := deltaSize(d)
	if !ok || !ok2 || from != int64(len(base)) {
		return nil, errors.New("a delta of another object")
	}
	if err := g.take(to); err != nil {
		return nil, err
	}
	var out []byte
	for len(d) > 0 {
		op := d[0]
		d = d[1:]
		if op&0x80 == 0 {
			n := int(op)
			if n == 0 || n > len(d) {
				return nil, errors.New("a delta that is cut short")
			}
			out, d = append(out, d[:n]...), d[n:]
		} else {
			var v [7]byte // offset and size, little endian
			for i := range v {
				if op>>i&1 == 0 {
					continue
				}
				if len(d) == 0 {
					return nil, errors.New("a delta that is cut short")
				}
				v[i], d = d[0], d[1:]
			}
			off := int64(binary.LittleEndian.Uint32(v[:4]))
			n := int64(v[4]) | int64(v[5])<<8 | int64(v[6])<<16
			if n == 0 {
				n = 1 << 16
			}
			if off > int64(len(base)) || n > int64(len(base))-off {
				return nil, errors.New("a delta that copies what is not there")
			}
			out = append(out, base[off:off+n]...)
		}
		if int64(len(out)) > to {
			return nil, errors.New("a delta that makes more than it says")
		}
	}
	if int64(len(out)) != to {
		return nil, errors.New("a delta that makes less than it says")
	}
	return out, nil
}

func deltaSize(d []byte) (n int64, rest []byte, ok bool) {
	for i, b := range d {
		if i > 6 {
			return 0, nil, false
		}
		n |= int64(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			return n, d[i+1:], true
		}
	}
	return 0, nil, false
}
