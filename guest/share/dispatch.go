package share

import "sync"

// operation is how one opcode is taken: the size of its fixed arguments, the least room that its reply needs besides the
// header, and what does it.
type operation struct {
	in, out int
	do      func(*Server, *request) errno
	silent  bool // has no reply
	payload bool // has bytes after its arguments that stay in the guest's memory
}

// operations holds everything that is answered. The rest is ENOSYS, which the guest's kernel remembers and does not ask
// again: xattrs, ACCESS, FLUSH, FSYNCDIR's absence would cost a request per file otherwise.
var operations [opLast + 1]operation

func init() {
	// Filled at start and not in the literal, since doInit's replies and the dispatcher refer to each other.
	operations = [opLast + 1]operation{
		opLookup:      {out: entryOutSize, do: (*Server).doLookup},
		opForget:      {in: 8, do: (*Server).doForget, silent: true},
		opBatchForget: {in: 8, do: (*Server).doBatchForget, silent: true, payload: true},
		opInterrupt:   {do: (*Server).doNothing, silent: true},
		opNotifyReply: {do: (*Server).doNothing, silent: true, payload: true},
		opInit:        {in: 16, out: initOutSize, do: (*Server).doInit},
		opDestroy:     {do: (*Server).doDestroy},
		opGetattr:     {in: 16, out: attrOutSize, do: (*Server).doGetattr},
		opSetattr:     {in: 88, out: attrOutSize, do: (*Server).doSetattr},
		opReadlink:    {do: (*Server).doReadlink},
		opSymlink:     {out: entryOutSize, do: (*Server).doSymlink},
		opMknod:       {in: 16, out: entryOutSize, do: (*Server).doMknod},
		opMkdir:       {in: 8, out: entryOutSize, do: (*Server).doMkdir},
		opUnlink:      {do: (*Server).doUnlink},
		opRmdir:       {do: (*Server).doRmdir},
		opRename:      {in: 8, do: (*Server).doRename},
		opRename2:     {in: 16, do: (*Server).doRename2},
		opLink:        {in: 8, out: entryOutSize, do: (*Server).doLink},
		opOpen:        {in: 8, out: openOutSize, do: (*Server).doOpen},
		opCreate:      {in: 16, out: entryOutSize + openOutSize, do: (*Server).doCreate},
		opRead:        {in: 40, do: (*Server).doRead},
		opWrite:       {in: 40, out: 8, do: (*Server).doWrite, payload: true},
		opRelease:     {in: 24, do: (*Server).doRelease},
		opReleasedir:  {in: 24, do: (*Server).doRelease},
		opFsync:       {in: 16, do: (*Server).doFsync},
		opFsyncdir:    {in: 16, do: (*Server).doFsync},
		opFallocate:   {in: 32, do: (*Server).doFallocate},
		opLseek:       {in: 24, out: 8, do: (*Server).doLseek},
		opOpendir:     {in: 8, out: openOutSize, do: (*Server).doOpendir},
		opReaddir:     {in: 40, do: (*Server).doReaddir},
		opReaddirplus: {in: 40, do: (*Server).doReaddirplus},
		opStatfs:      {out: statfsOutSize, do: (*Server).doStatfs},
	}
}

// request is one message under way.
type request struct {
	op     opcode
	unique uint64
	node   uint64
	minor  uint32

	args args   // the fixed arguments, copied
	rest []byte // names and targets after them, copied
	data [][]byte
	size int // bytes in data

	room int      // bytes that the reply's body may have
	sink [][]byte // where it may have them: memory that the guest may be changing
	sent int      // bytes that a READ has put there itself
	out  []byte   // the body otherwise

	buf   [maxBody]byte
	small [512]byte
	segs  [2][]([]byte)
}

var requests = sync.Pool{New: func() any { return new(request) }}

// Serve answers one message from a stream carrier: req is the whole message, resp has room for the reply, and the return
// value is how long that reply is: 0 for a message that has none. A room of MaxMessage fits every reply.
func (s *Server) Serve(req, resp []byte) int {
	return s.ServeSegments([][]byte{req}, [][]byte{resp})
}

// ServeSegments answers one message that lies in pieces, as in a virtqueue: readable is the message, writable the room for
// its reply. It gives the number of bytes written from the start of writable. Both may be memory that the guest changes
// meanwhile; neither is used after the return. Neither slice is altered, their bytes apart.
func (s *Server) ServeSegments(readable, writable [][]byte) (written int) {
	return s.message(readable, writable, false)
}

func (s *Server) message(readable, writable [][]byte, urgent bool) (written int) {
	r := requests.Get().(*request)
	defer func() {
		if cause := recover(); cause != nil {
			s.fail(r.op, cause)
			written = 0 // the request's own memory may be what is gone: nothing more is written there
			return
		}
		r.release()
	}()
	e, silent := s.serve(r, readable, writable, urgent)
	if silent || total(writable) < outHeaderSize {
		return 0
	}
	return r.reply(e, writable)
}

// ServeUrgent takes a message that has no reply and asks nothing of the host: FORGET, BATCH_FORGET, INTERRUPT. It never waits
// for the host's file system, and drops any other message. (On virtio-fs these have a queue of their own.)
func (s *Server) ServeUrgent(readable [][]byte) { s.message(readable, nil, true) }

// release gives the request back for the next, without holding on to the guest's memory.
func (r *request) release() {
	for i := range r.segs {
		clear(r.segs[i])
	}
	r.args, r.rest, r.data, r.sink, r.out = args{}, nil, nil, nil, nil
	requests.Put(r)
}

// serve takes the message apart and does what it asks.
func (s *Server) serve(r *request, readable, writable [][]byte, urgent bool) (e errno, silent bool) {
	length := total(readable)
	r.op, r.unique, r.node, r.sent = 0, 0, 0, 0
	r.room = total(writable) - outHeaderSize
	if length < inHeaderSize {
		return eINVAL, true // too short to say whom to answer
	}
	head := r.buf[:inHeaderSize]
	copyOut(head, readable, 0)
	h := args{head}
	said := h.u32()
	r.op, r.unique, r.node = opcode(h.u32()), h.u64(), h.u64()
	extensions := le.Uint16(head[36:])
	if int64(said) != int64(length) || length > MaxMessage || extensions != 0 {
		return eINVAL, r.op == opForget || r.op == opBatchForget
	}
	if r.op > opLast || operations[r.op].do == nil {
		return eNOSYS, false
	}
	o := &operations[r.op]
	if urgent && !o.silent {
		return eINVAL, true // judged by the copy, not by what the guest has there now
	}
	body := length - inHeaderSize
	switch {
	case body < o.in, !o.payload && body > maxBody, r.room < o.out && !o.silent:
		return eINVAL, o.silent
	case s.dead.Load() != nil:
		return eIO, o.silent
	}
	r.minor = s.session.Load()
	if (r.minor == 0) != (r.op == opInit) {
		return eIO, o.silent // INIT comes first, and once
	}
	if o.payload {
		copyOut(r.buf[:o.in], readable, inHeaderSize)
		r.args.b, r.rest = r.buf[:o.in], nil
		r.size = body - o.in
		r.data = skip(r.segs[0][:0], readable, inHeaderSize+o.in)
		r.segs[0] = r.data
	} else {
		copyOut(r.buf[:body], readable, inHeaderSize)
		r.args.b, r.rest = r.buf[:o.in], r.buf[o.in:body]
	}
	r.sink = writable
	r.out = r.small[:0]
	return o.do(s, r), o.silent
}

// reply writes the header and the body. After an error there is no body.
func (r *request) reply(e errno, writable [][]byte) int {
	n := outHeaderSize + r.sent
	if e == ok && r.sent == 0 {
		n += len(r.out)
	}
	if e != ok {
		n = outHeaderSize
	}
	var head [outHeaderSize]byte
	le.PutUint32(head[0:], uint32(n))
	le.PutUint32(head[4:], uint32(-int32(e)))
	le.PutUint64(head[8:], r.unique)
	if e == ok && r.sent == 0 {
		copyIn(writable, outHeaderSize, r.out)
	}
	copyIn(writable, 0, head[:])
	return n
}

func total(segs [][]byte) int {
	n := 0
	for _, s := range segs {
		n += len(s)
	}
	return n
}

// copyOut fills dst from segs at off; the caller has compared the lengths.
func copyOut(dst []byte, segs [][]byte, off int) {
	for _, s := range segs {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n := copy(dst, s[off:])
		if dst = dst[n:]; len(dst) == 0 {
			return
		}
		off = 0
	}
}

// copyIn puts src into segs at off.
func copyIn(segs [][]byte, off int, src []byte) {
	for _, s := range segs {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n := copy(s[off:], src)
		if src = src[n:]; len(src) == 0 {
			return
		}
		off = 0
	}
}

// skip appends to dst the segments after the first off bytes.
func skip(dst, segs [][]byte, off int) [][]byte {
	for _, s := range segs {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		dst = append(dst, s[off:])
		off = 0
	}
	return dst
}

// limit cuts segs in place to n bytes.
func limit(segs [][]byte, n int) [][]byte {
	for i, s := range segs {
		if len(s) >= n {
			segs[i] = s[:n:n]
			return segs[:i+1]
		}
		n -= len(s)
	}
	return segs
}
