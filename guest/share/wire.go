package share

import "encoding/binary"

// Sizes in bytes from include/uapi/linux/fuse.h.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	attrSize      = 88
	entryOutSize  = 40 + attrSize
	attrOutSize   = 16 + attrSize
	openOutSize   = 16
	initOutSize   = 64
	statfsOutSize = 80
	direntSize    = 24 // before the name; names are padded to 8
)

const (
	rootID = 1

	// protoMinor is the newest minor version that was read for this server; the oldest, protoOldest, is where every
	// structure used here has its present size. A kernel speaks the smaller of its own and ours.
	protoMajor  = 7
	protoMinor  = 38
	protoOldest = 31
)

// MaxWrite is the most bytes that one READ or WRITE carries; MaxMessage is the most that any message has. A carrier
// refuses what is longer before it makes room for it.
const (
	MaxWrite   = 1 << 20
	MaxMessage = MaxWrite + 8<<10

	maxPages = MaxWrite / 4096
	// maxBody bounds arguments and names of everything but a WRITE's payload: a symlink's name and target (256 + 4,096)
	// are the longest.
	maxBody = 5 << 10
	// maxList bounds one READDIR reply, whatever size was asked for.
	maxList = 64 << 10
)

type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetattr     opcode = 3
	opSetattr     opcode = 4
	opReadlink    opcode = 5
	opSymlink     opcode = 6
	opMknod       opcode = 8
	opMkdir       opcode = 9
	opUnlink      opcode = 10
	opRmdir       opcode = 11
	opRename      opcode = 12
	opLink        opcode = 13
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opSetxattr    opcode = 21
	opGetxattr    opcode = 22
	opListxattr   opcode = 23
	opRemovexattr opcode = 24
	opFlush       opcode = 25
	opInit        opcode = 26
	opOpendir     opcode = 27
	opReaddir     opcode = 28
	opReleasedir  opcode = 29
	opFsyncdir    opcode = 30
	opAccess      opcode = 34
	opCreate      opcode = 35
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opNotifyReply opcode = 41
	opBatchForget opcode = 42
	opFallocate   opcode = 43
	opReaddirplus opcode = 44
	opRename2     opcode = 45
	opLseek       opcode = 46
	opLast               = opLseek
)

// INIT flags that this server answers with, when the guest offers them.
const (
	initAsyncRead      = 1 << 0
	initAtomicTrunc    = 1 << 3
	initBigWrites      = 1 << 5
	initAutoInval      = 1 << 12
	initReaddirplus    = 1 << 13
	initAsyncDIO       = 1 << 15
	initParallelDirops = 1 << 18
	initMaxPages       = 1 << 22
	// Not among them, and why. WRITEBACK_CACHE: sizes and times would be the guest's, and host edits lost. POSIX_LOCKS,
	// FLOCK_LOCKS: locks stay inside the guest. EXPORT_SUPPORT: LOOKUP of "." and "..". POSIX_ACL, SECURITY_CTX: no xattrs.
	// HANDLE_KILLPRIV: set-id bits are dropped at open, whatever the guest says. SPLICE_*: only the guest's business.
	// READDIRPLUS_AUTO: a kernel with it asks for names alone after the first 4 KiB of a folder, and then for each entry by itself;
	// without it 22 entries come with each request.
	initWanted = initAsyncRead | initAtomicTrunc | initBigWrites | initAutoInval | initReaddirplus | initAsyncDIO | initParallelDirops | initMaxPages
)

const (
	getattrFH = 1 << 0

	fattrMode     = 1 << 0
	fattrUID      = 1 << 1
	fattrGID      = 1 << 2
	fattrSize     = 1 << 3
	fattrAtime    = 1 << 4
	fattrMtime    = 1 << 5
	fattrFH       = 1 << 6
	fattrAtimeNow = 1 << 7
	fattrMtimeNow = 1 << 8

	fopenKeepCache = 1 << 1

	fsyncDataOnly = 1 << 0

	renameNoReplace = 1 << 0
	renameExchange  = 1 << 1

	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10

	seekData = 3
	seekHole = 4
)

// Linux mode and open bits (include/uapi/linux/stat.h, asm-generic/fcntl.h; the same on x86-64 and arm64 for those used).
const (
	modeType    = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
	modePerm    = 0o777
	modeSetID   = 0o6000

	oAccMode = 0o3
	oRdonly  = 0o0
	oWronly  = 0o1
	oRdwr    = 0o2
	oExcl    = 0o200
	oTrunc   = 0o1000
	oAppend  = 0o2000
	oDsync   = 0o10000
	oSync    = 0o4010000
)

var le = binary.LittleEndian

// args reads a request's fixed arguments in order. The dispatcher has already compared the body with the operation's
// size, so it cannot run out.
type args struct{ b []byte }

func (a *args) u32() uint32 { v := le.Uint32(a.b); a.b = a.b[4:]; return v }
func (a *args) u64() uint64 { v := le.Uint64(a.b); a.b = a.b[8:]; return v }

// appendAttr appends struct fuse_attr. Every entry belongs to uid and gid; set-id and sticky bits, device numbers and the
// host's owners stay on the host.
func appendAttr(b []byte, st *stat, ino uint64, uid, gid uint32) []byte {
	b = le.AppendUint64(b, ino)
	b = le.AppendUint64(b, st.size)
	b = le.AppendUint64(b, st.blocks)
	b = le.AppendUint64(b, uint64(st.atime.sec))
	b = le.AppendUint64(b, uint64(st.mtime.sec))
	b = le.AppendUint64(b, uint64(st.ctime.sec))
	b = le.AppendUint32(b, st.atime.nsec)
	b = le.AppendUint32(b, st.mtime.nsec)
	b = le.AppendUint32(b, st.ctime.nsec)
	b = le.AppendUint32(b, st.mode&(modeType|modePerm))
	b = le.AppendUint32(b, st.nlink)
	b = le.AppendUint32(b, uid)
	b = le.AppendUint32(b, gid)
	b = le.AppendUint32(b, 0) // rdev
	b = le.AppendUint32(b, st.blksize)
	return le.AppendUint32(b, 0) // flags
}

// appendDirent appends struct fuse_dirent, or nothing if it would pass limit.
func appendDirent(b []byte, limit int, ino, off uint64, kind uint32, name string) ([]byte, bool) {
	padded := (len(name) + 7) &^ 7
	if len(b)+direntSize+padded > limit {
		return b, false
	}
	b = le.AppendUint64(b, ino)
	b = le.AppendUint64(b, off)
	b = le.AppendUint32(b, uint32(len(name)))
	b = le.AppendUint32(b, kind>>12)
	b = append(b, name...)
	var zero [8]byte
	return append(b, zero[:padded-len(name)]...), true
}
