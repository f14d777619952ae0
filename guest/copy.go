package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// Bounds of one copy.
const (
	maxCopyEntries = 1 << 20
	maxCopyName    = 4096
)

// copyState follows one direction of a copy: entries with clean relative
// names, each regular file followed by exactly the bytes that it announced.
type copyState struct {
	entries int
	left    int64
}

// entry checks one entry. The rules are the same whoever sent it.
func (c *copyState) entry(f *wire.File) error {
	c.entries++
	switch {
	case c.left > 0:
		return fmt.Errorf("an entry came %d bytes before the last file's end", c.left)
	case c.entries > maxCopyEntries:
		return fmt.Errorf("more than %d entries", maxCopyEntries)
	case len(f.Name) > maxCopyName || len(f.Target) > maxCopyName:
		return fmt.Errorf("a name of more than %d bytes", maxCopyName)
	case !cleanRelative(f.Name):
		return fmt.Errorf("the name %q is not a clean path beneath the copy", clip(f.Name))
	case f.Mode&^0o777 != 0:
		return fmt.Errorf("%q has mode bits beside the permissions", clip(f.Name))
	case f.Size < 0 || f.Size > 0 && f.Type != wire.FileType_FILE_TYPE_REGULAR:
		return fmt.Errorf("%q has an impossible size", clip(f.Name))
	case f.Type < wire.FileType_FILE_TYPE_REGULAR || f.Type > wire.FileType_FILE_TYPE_SYMLINK:
		return fmt.Errorf("%q is of an unknown type", clip(f.Name))
	case (f.Type == wire.FileType_FILE_TYPE_SYMLINK) != (f.Target != "") || strings.IndexByte(f.Target, 0) >= 0:
		return fmt.Errorf("%q has an impossible target", clip(f.Name))
	}
	c.left = f.Size
	return nil
}

func (c *copyState) data(n int) error {
	if c.left -= int64(n); c.left < 0 {
		return errors.New("more bytes than the file announced")
	}
	return nil
}

// cleanRelative says whether a name is a clean path in the guest, which is a
// Linux: a backslash is a byte like others. Whoever writes the copy down judges
// what it is where it runs.
func cleanRelative(name string) bool {
	return name != "" && name != "." && !path.IsAbs(name) && path.Clean(name) == name && name != ".." && !strings.HasPrefix(name, "../") &&
		strings.IndexByte(name, 0) < 0
}

// keeperFiles implements FileService: two services have a List.
type keeperFiles struct{ k *Keeper }

// Put implements FileService.
func (f keeperFiles) Put(ctx context.Context, st *connect.ClientStream[api.PutRequest]) (*connect.Response[api.PutResponse], error) {
	return f.k.put(ctx, st)
}

// Get implements FileService.
func (f keeperFiles) Get(ctx context.Context, r *connect.Request[api.GetRequest], st *connect.ServerStream[api.GetResponse]) error {
	return f.k.get(ctx, r, st)
}

// inUse is guest, of which the caller wants something until it calls end.
func (k *Keeper) inUse(ctx context.Context) (g *Guest, end func(), err error) {
	if g, err = k.guest(); err != nil {
		return nil, nil, err
	}
	if end, err = g.rest.use(ctx); errors.Is(err, errLeaving) {
		err = k.leaving()
	}
	return g, end, err
}

// guest returns the running guest, or the error that says there is none.
func (k *Keeper) guest() (*Guest, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.g == nil {
		return nil, api.NewError(connect.CodeFailedPrecondition, "not_running", "guest "+k.info.Name+" is not running", "carrel start "+k.info.Name)
	}
	return k.g, nil
}

func checkCopy(p, user string) error {
	if !path.IsAbs(p) || len(p) > maxCopyName || strings.IndexByte(p, 0) >= 0 || len(user) > 32 || !userName(user) {
		return api.NewError(connect.CodeInvalidArgument, "bad_path", fmt.Sprintf("%q is not an absolute path in the guest", clip(p)), "")
	}
	return nil
}

// broken turns a copy's failure into the API's words; one that the wire does
// not allow ends the guest.
func (g *Guest) brokenCopy(err error) error {
	var v *violation
	if errors.As(err, &v) || errors.Is(err, wire.ErrFrame) {
		g.broke(err)
	}
	text := wire.Text(err.Error(), wire.MaxText)
	var own *copyError
	if errors.As(err, &own) {
		switch own.errno { // errno(3)
		case 2:
			return api.NewError(connect.CodeNotFound, "no_such_file", text, "")
		case 1, 13:
			return api.NewError(connect.CodePermissionDenied, "not_permitted", text, "")
		}
	}
	return api.NewError(connect.CodeAborted, "copy_failed", text, "")
}

func (k *Keeper) put(ctx context.Context, st *connect.ClientStream[api.PutRequest]) (*connect.Response[api.PutResponse], error) {
	if !st.Receive() {
		return nil, st.Err()
	}
	open := st.Msg().GetOpen()
	if open == nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_request", "the first message of a copy must be open", "")
	}
	if err := checkCopy(open.Path, open.User); err != nil {
		return nil, err
	}
	g, end, err := k.inUse(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Put{Put: &wire.Put{Path: open.Path, User: open.User, Mkdir: open.Mkdir}}})
	if err != nil {
		return nil, g.brokenCopy(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	// The guest may say at any time that it cannot go on.
	answer := make(chan error, 1)
	go func() { answer <- readDone(wire.NewReader(conn)) }()
	sent := sendFiles(conn, st)
	if sent != nil && ctx.Err() == nil {
		var bad *connect.Error
		if errors.As(sent, &bad) {
			conn.Close()
			<-answer
			return nil, sent
		}
	}
	if err := <-answer; err != nil {
		return nil, g.brokenCopy(err)
	}
	if sent != nil {
		return nil, g.brokenCopy(sent)
	}
	return connect.NewResponse(&api.PutResponse{}), nil
}

func sendFiles(conn net.Conn, st *connect.ClientStream[api.PutRequest]) error {
	var c copyState
	send := func(f *wire.Copy) error {
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		return wire.Write(conn, f)
	}
	bad := func(err error) error {
		return api.NewError(connect.CodeInvalidArgument, "bad_copy", err.Error(), "")
	}
	for st.Receive() {
		var err error
		switch m := st.Msg().Kind.(type) {
		case *api.PutRequest_File:
			f := &wire.File{Name: m.File.Name, Type: wire.FileType(m.File.Type), Mode: m.File.Mode, Size: m.File.Size, Target: m.File.Target}
			if err := c.entry(f); err != nil {
				return bad(err)
			}
			err = send(&wire.Copy{Kind: &wire.Copy_File{File: f}})
		case *api.PutRequest_Data:
			if err := c.data(len(m.Data)); err != nil {
				return bad(err)
			}
			for p := m.Data; len(p) > 0 && err == nil; {
				n := min(len(p), wire.DataChunk)
				err = send(&wire.Copy{Kind: &wire.Copy_Data{Data: p[:n]}})
				p = p[n:]
			}
		default:
			return bad(errors.New("a message of no known kind"))
		}
		if err != nil {
			return err
		}
	}
	if err := st.Err(); err != nil {
		return bad(err)
	}
	if c.left > 0 {
		return bad(fmt.Errorf("the copy ended %d bytes before its last file's end", c.left))
	}
	return send(&wire.Copy{Kind: &wire.Copy_Done{Done: &wire.Done{}}})
}

// readDone reads the one frame that ends a Put.
func readDone(r *wire.Reader) error {
	f := new(wire.Copy)
	if err := r.Read(f); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the guest ended the copy without a word")
		}
		return err
	}
	d := f.GetDone()
	switch {
	case d == nil:
		return &violation{"a copy into the guest was answered with a file"}
	case d.Error != "":
		return &copyError{d.Errno, d.Error}
	}
	return nil
}

// copyError is the guest's own word that a copy failed, with Linux's number of
// the error.
type copyError struct {
	errno uint32
	text  string
}

func (e *copyError) Error() string { return e.text }

func (k *Keeper) get(ctx context.Context, r *connect.Request[api.GetRequest], st *connect.ServerStream[api.GetResponse]) error {
	if err := checkCopy(r.Msg.Path, r.Msg.User); err != nil {
		return err
	}
	g, end, err := k.inUse(ctx)
	if err != nil {
		return err
	}
	defer end()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Get{Get: &wire.Get{Path: r.Msg.Path, User: r.Msg.User}}})
	if err != nil {
		return g.brokenCopy(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var c copyState
	for in := wire.NewReader(conn); ; {
		f := new(wire.Copy)
		if err := in.Read(f); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the guest ended the copy without a word")
			}
			return g.brokenCopy(err)
		}
		out := new(api.GetResponse)
		switch m := f.Kind.(type) {
		case *wire.Copy_File:
			if err := c.entry(m.File); err != nil {
				return g.brokenCopy(&violation{err.Error()})
			}
			out.Kind = &api.GetResponse_File{File: &api.File{Name: m.File.Name, Type: api.FileType(m.File.Type), Mode: m.File.Mode, Size: m.File.Size, Target: m.File.Target}}
		case *wire.Copy_Data:
			if err := c.data(len(m.Data)); err != nil {
				return g.brokenCopy(&violation{err.Error()})
			}
			out.Kind = &api.GetResponse_Data{Data: m.Data}
		case *wire.Copy_Done:
			if m.Done.Error != "" {
				return g.brokenCopy(&copyError{m.Done.Errno, m.Done.Error})
			}
			if c.left > 0 {
				return g.brokenCopy(&violation{"the copy ended in the midst of a file"})
			}
			return nil
		default:
			return g.brokenCopy(&violation{"an empty frame"})
		}
		if err := st.Send(out); err != nil {
			return err
		}
	}
}
