package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

const (
	// maxLinks bounds how many symbolic links lead to one file, as Linux does
	// (path_resolution(7)).
	maxLinks = 40
	// maxReadFile bounds the bytes that ReadFile holds in memory: how many there
	// are is the guest's word.
	maxReadFile = 64 << 20
	// readPart is how many bytes are asked for at once.
	readPart = 256 << 10
)

// ErrLeftOut comes with a folder's entries when they are not all: there are more
// than 10,000, or names that are not UTF-8.
var ErrLeftOut = errors.New("entries of the folder were left out")

// Files is a folder of a running guest as a file system: an fs.FS that also
// implements fs.ReadDirFS, fs.ReadFileFS, fs.StatFS, fs.ReadLinkFS and fs.SubFS;
// its files implement io.ReaderAt and io.Seeker. Links are followed within the
// guest, also out of the folder, as os.DirFS does.
//
// Names, sizes, times and contents are the guest's word.
type Files struct {
	// An fs.FS takes no context, so this one holds for all of its calls.
	ctx              context.Context
	c                *Client
	guest, dir, user string
}

var _ interface {
	fs.ReadDirFS
	fs.ReadFileFS
	fs.StatFS
	fs.ReadLinkFS
	fs.SubFS
} = (*Files)(nil)

// Files returns the absolute folder dir of a guest, as user sees it; "": as 1000
// does. The end of ctx ends every read.
func (c *Client) Files(ctx context.Context, guest, dir, user string) (*Files, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	if err := checkGuestPath(dir); err != nil {
		return nil, err
	}
	return &Files{ctx: ctx, c: c, guest: guest, dir: path.Clean(dir), user: user}, nil
}

// Open implements fs.FS.
func (f *Files) Open(name string) (fs.File, error) {
	p, self, err := f.follow("open", name)
	if err != nil {
		return nil, err
	}
	switch {
	case self.IsDir():
		return &openFolder{f: f, name: name, info: self}, nil
	case !self.Mode().IsRegular():
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("it is neither file nor folder")}
	}
	o := &openFile{f: f, name: name, path: p, info: self}
	if _, err := o.part(0, 1); err != nil { // whether it may be read is said now
		return nil, err
	}
	return o, nil
}

// Stat implements fs.StatFS.
func (f *Files) Stat(name string) (fs.FileInfo, error) {
	_, self, err := f.follow("stat", name)
	if err != nil {
		return nil, err
	}
	return self, nil
}

// Lstat implements fs.ReadLinkFS.
func (f *Files) Lstat(name string) (fs.FileInfo, error) {
	p, err := f.at("lstat", name)
	if err != nil {
		return nil, err
	}
	m, err := f.list("lstat", name, p, true)
	if err != nil {
		return nil, err
	}
	return infoOf(m.Self, name), nil
}

// ReadLink implements fs.ReadLinkFS.
func (f *Files) ReadLink(name string) (string, error) {
	i, err := f.Lstat(name)
	if err != nil {
		return "", err
	}
	if e := i.(entry); e.Mode()&fs.ModeSymlink != 0 {
		return e.m.Target, nil
	}
	return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFS. With ErrLeftOut it returns what is there.
func (f *Files) ReadDir(name string) ([]fs.DirEntry, error) {
	p, self, err := f.follow("readdir", name)
	if err != nil {
		return nil, err
	}
	if !self.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNoFolder}
	}
	m, err := f.list("readdir", name, p, false)
	if err != nil {
		return nil, err
	}
	var out []fs.DirEntry
	for _, e := range m.Entries {
		if !fs.ValidPath(e.GetName()) || strings.Contains(e.Name, "/") || e.Name == "." {
			return nil, &fs.PathError{Op: "readdir", Path: name, Err: fmt.Errorf("%.200q is no name of an entry", e.Name)}
		}
		out = append(out, infoOf(e, e.Name))
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	// A hostile guest says one name twice; a reader would take each for a file.
	out = slices.CompactFunc(out, func(a, b fs.DirEntry) bool { return a.Name() == b.Name() })
	if m.LeftOut > 0 {
		return out, &fs.PathError{Op: "readdir", Path: name, Err: fmt.Errorf("%w: %d", ErrLeftOut, m.LeftOut)}
	}
	return out, nil
}

// ReadFile implements fs.ReadFileFS, for files of at most 64 MiB.
func (f *Files) ReadFile(name string) ([]byte, error) {
	h, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	b, err := io.ReadAll(io.LimitReader(h, maxReadFile+1))
	if err == nil && len(b) > maxReadFile {
		err = &fs.PathError{Op: "read", Path: name, Err: tooLarge(maxReadFile)}
	}
	return b, err
}

// Sub implements fs.SubFS.
func (f *Files) Sub(name string) (fs.FS, error) {
	p, err := f.at("sub", name)
	if err != nil {
		return nil, err
	}
	sub := *f
	sub.dir = p
	return &sub, nil
}

// WriteFile writes a file, whose folder exists, in place of what has its name.
// It becomes visible at once and whole. A link of that name is replaced.
func (f *Files) WriteFile(name string, data []byte, perm fs.FileMode) error {
	p, err := f.at("write", name)
	if err != nil {
		return err
	}
	return f.put(name, path.Dir(p), false, &api.File{
		Name: path.Base(p), Type: api.FileType_FILE_TYPE_REGULAR, Mode: uint32(perm.Perm()), Size: int64(len(data)),
	}, data)
}

// MkdirAll makes a folder, and those that lead to it, where they are missing.
func (f *Files) MkdirAll(name string, perm fs.FileMode) error {
	p, err := f.at("mkdir", name)
	if err != nil || p == "/" {
		return err
	}
	return f.put(name, path.Dir(p), true, &api.File{Name: path.Base(p), Type: api.FileType_FILE_TYPE_DIRECTORY, Mode: uint32(perm.Perm())}, nil)
}

func (f *Files) put(name, dir string, mkdir bool, file *api.File, data []byte) error {
	if err := cleanName(file.Name); err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	st := f.c.files.Put(ctx)
	err := st.Send(&api.PutRequest{Kind: &api.PutRequest_Open{Open: &api.PutOpen{Guest: f.guest, Path: dir, User: f.user, Mkdir: mkdir}}})
	if err == nil {
		err = st.Send(&api.PutRequest{Kind: &api.PutRequest_File{File: file}})
	}
	for part := range slices.Chunk(data, copyChunk) {
		if err == nil {
			err = st.Send(&api.PutRequest{Kind: &api.PutRequest_Data{Data: part}})
		}
	}
	// io.EOF: the other side has ended; the answer says why.
	if err == nil || errors.Is(err, io.EOF) {
		_, err = st.CloseAndReceive()
	}
	if err != nil {
		return f.failed("write", name, err)
	}
	return nil
}

var errNoFolder = errors.New("it is not a folder")

// at is name's absolute path in the guest.
func (f *Files) at(op, name string) (string, error) {
	if !fs.ValidPath(name) || strings.ContainsRune(name, 0) || len(f.dir)+len(name) >= maxName {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return path.Join(f.dir, name), nil
}

// follow says what name leads to, and where in the guest that is.
func (f *Files) follow(op, name string) (string, entry, error) {
	p, err := f.at(op, name)
	if err != nil {
		return "", entry{}, err
	}
	for range maxLinks {
		m, err := f.list(op, name, p, true)
		if err != nil {
			return "", entry{}, err
		}
		self := infoOf(m.Self, name)
		if self.Mode()&fs.ModeSymlink == 0 {
			return p, self, nil
		}
		// The folders on the way are the guest's kernel's to follow, so ".."
		// of a target is left to it, too.
		to := m.Self.Target
		if !path.IsAbs(to) {
			to = p[:strings.LastIndexByte(p, '/')+1] + to
		}
		if p = to; len(p) > maxName {
			break
		}
	}
	return "", entry{}, &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("more than %d links lead to it", maxLinks)}
}

func (f *Files) list(op, name, p string, self bool) (*api.ListFilesResponse, error) {
	res, err := f.c.files.List(f.ctx, connect.NewRequest(&api.ListFilesRequest{Guest: f.guest, Path: p, User: f.user, SelfOnly: self}))
	if err != nil {
		return nil, f.failed(op, name, err)
	}
	if res.Msg.Self == nil {
		return nil, f.failed(op, name, errors.New("nothing is said of it"))
	}
	return res.Msg, nil
}

// failed is err as package fs has it, so that errors.Is knows what is missing.
func (f *Files) failed(op, name string, err error) error {
	err = wrap(op+" "+name+" in guest "+f.guest, err)
	switch CodeOf(err) {
	case "no_such_file":
		err = errors.Join(fs.ErrNotExist, err)
	case "not_permitted":
		err = errors.Join(fs.ErrPermission, err)
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// entry is what a guest says of a name, as fs.FileInfo and fs.DirEntry.
type entry struct {
	name string
	m    *api.FileInfo
}

// infoOf is m under the name by which it was asked for.
func infoOf(m *api.FileInfo, name string) entry { return entry{path.Base(name), m} }

func (e entry) Mode() fs.FileMode {
	mode := fs.FileMode(e.m.Mode & 0o777)
	switch e.m.Type {
	case api.FileType_FILE_TYPE_REGULAR:
	case api.FileType_FILE_TYPE_DIRECTORY:
		mode |= fs.ModeDir
	case api.FileType_FILE_TYPE_SYMLINK:
		mode |= fs.ModeSymlink
	default:
		mode |= fs.ModeIrregular
	}
	return mode
}

func (e entry) Name() string               { return e.name }
func (e entry) Size() int64                { return max(e.m.Size, 0) }
func (e entry) Type() fs.FileMode          { return e.Mode().Type() }
func (e entry) ModTime() time.Time         { return e.m.Modified.AsTime() }
func (e entry) IsDir() bool                { return e.Mode().IsDir() }
func (e entry) Sys() any                   { return e.m }
func (e entry) Info() (fs.FileInfo, error) { return e, nil }
func (e entry) String() string             { return fs.FormatDirEntry(e) }

// openFile is a file that is read in parts; each is of the file as it is then.
type openFile struct {
	f      *Files
	name   string
	path   string // where its links lead
	info   entry
	at     int64
	buf    bytes.Reader
	closed bool
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openFile) Close() error               { o.closed = true; return nil }

// part reads at most n bytes.
func (o *openFile) part(at int64, n int) ([]byte, error) {
	if o.closed {
		return nil, &fs.PathError{Op: "read", Path: o.name, Err: fs.ErrClosed}
	}
	res, err := o.f.c.files.Read(o.f.ctx, connect.NewRequest(&api.ReadFileRequest{
		Guest: o.f.guest, Path: o.path, User: o.f.user, Offset: at, MaxBytes: int64(min(n, readPart)),
	}))
	if err != nil {
		return nil, o.f.failed("read", o.name, err)
	}
	if len(res.Msg.Data) > n {
		return nil, o.f.failed("read", o.name, errors.New("more came than was asked for"))
	}
	return res.Msg.Data, nil
}

func (o *openFile) Read(p []byte) (int, error) {
	if o.closed {
		return 0, &fs.PathError{Op: "read", Path: o.name, Err: fs.ErrClosed}
	}
	if len(p) == 0 {
		return 0, nil
	}
	if o.buf.Len() == 0 {
		b, err := o.part(o.at, readPart)
		if err != nil {
			return 0, err
		}
		o.buf.Reset(b)
	}
	n, err := o.buf.Read(p)
	o.at += int64(n)
	return n, err
}

// ReadAt implements io.ReaderAt.
func (o *openFile) ReadAt(p []byte, at int64) (n int, err error) {
	if at < 0 {
		return 0, &fs.PathError{Op: "read", Path: o.name, Err: fs.ErrInvalid}
	}
	for n < len(p) {
		b, err := o.part(at+int64(n), len(p)-n)
		if err != nil {
			return n, err
		}
		if len(b) == 0 {
			return n, io.EOF
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

// Seek implements io.Seeker. The end is where it was when the file was opened.
func (o *openFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += o.at
	case io.SeekEnd:
		offset += o.info.Size()
	default:
		offset = -1
	}
	if offset < 0 {
		return 0, &fs.PathError{Op: "seek", Path: o.name, Err: fs.ErrInvalid}
	}
	o.at = offset
	o.buf.Reset(nil)
	return offset, nil
}

// openFolder is listed when it is first read.
type openFolder struct {
	f      *Files
	name   string
	info   entry
	list   []fs.DirEntry
	err    error
	listed bool
}

func (o *openFolder) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openFolder) Close() error               { return nil }

func (o *openFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: o.name, Err: errors.New("it is a folder")}
}

// ReadDir implements fs.ReadDirFile.
func (o *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if !o.listed {
		o.list, o.err = o.f.ReadDir(o.name)
		o.listed = true
	}
	end := o.err
	if n > 0 && end == nil {
		end = io.EOF
	}
	if n <= 0 {
		out := o.list
		o.list = nil
		return out, o.err
	}
	if len(o.list) == 0 {
		return nil, end
	}
	n = min(n, len(o.list))
	out := o.list[:n:n]
	o.list = o.list[n:]
	return out, nil
}
