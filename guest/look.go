package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/wire"
)

// maxLooked bounds the names and targets of one listing together, in bytes.
const maxLooked = 2 << 20

// List implements FileService.
func (f keeperFiles) List(ctx context.Context, r *connect.Request[api.ListFilesRequest]) (*connect.Response[api.ListFilesResponse], error) {
	out := new(api.ListFilesResponse)
	bytes, entries := 0, 0
	left, err := f.k.ask(ctx, &wire.Get{Path: r.Msg.Path, User: r.Msg.User, Look: true, SelfOnly: r.Msg.SelfOnly}, func(e *wire.File) error {
		if out.Self == nil {
			e.Name = path.Base(path.Clean(r.Msg.Path)) // not the guest's to say
			out.Self = info(e)
			return checkLooked(e, false)
		}
		if err := checkLooked(e, true); err != nil {
			return err
		}
		// Those that are left out count too: a guest would go on for ever with them.
		if entries++; entries > wire.MaxLook || r.Msg.SelfOnly || out.Self.Type != api.FileType_FILE_TYPE_DIRECTORY {
			return &violation{"a look at a folder brought more than was asked for"}
		}
		if bytes += len(e.Name) + len(e.Target); bytes > maxLooked {
			out.LeftOut++
			return nil
		}
		out.Entries = append(out.Entries, info(e))
		return nil
	}, func([]byte) error { return &violation{"a look at a folder brought content"} })
	switch {
	case err != nil:
		return nil, err
	case out.Self == nil:
		return nil, f.k.violated("a look brought nothing")
	}
	out.LeftOut += int32(min(left, 1<<30))
	return connect.NewResponse(out), nil
}

// Read implements FileService.
func (f keeperFiles) Read(ctx context.Context, r *connect.Request[api.ReadFileRequest]) (*connect.Response[api.ReadFileResponse], error) {
	if r.Msg.Offset < 0 || r.Msg.MaxBytes < 0 {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_number", "the offset, or the number of bytes, is negative", "")
	}
	most := int64(wire.MaxPart)
	if r.Msg.MaxBytes > 0 {
		most = min(most, r.Msg.MaxBytes)
	}
	out := new(api.ReadFileResponse)
	var want int64
	_, err := f.k.ask(ctx, &wire.Get{Path: r.Msg.Path, User: r.Msg.User, Most: most, Offset: r.Msg.Offset}, func(e *wire.File) error {
		if out.Info != nil || e.Size < 0 || e.Size > most || e.Type != wire.FileType_FILE_TYPE_REGULAR {
			return &violation{"a part of a file is not what was asked for"}
		}
		want = e.Size
		e.Size, e.Name = 0, path.Base(path.Clean(r.Msg.Path))
		out.Info = info(e)
		return checkLooked(e, false)
	}, func(b []byte) error {
		if len(b) == 0 { // which would never be too much
			return &violation{"a part of a file came with nothing in it"}
		}
		if out.Info == nil || int64(len(out.Data)+len(b)) > want {
			return &violation{"a part of a file is longer than it was announced"}
		}
		out.Data = append(out.Data, b...)
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case out.Info == nil || int64(len(out.Data)) != want:
		return nil, f.k.violated("a part of a file is shorter than it was announced")
	}
	return connect.NewResponse(out), nil
}

// ask sends the guest one question about its files, and takes its answer.
func (k *Keeper) ask(ctx context.Context, get *wire.Get, file func(*wire.File) error, data func([]byte) error) (leftOut uint32, err error) {
	if err := checkCopy(get.Path, get.User); err != nil {
		return 0, err
	}
	g, end, err := k.inUse(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	conn, err := g.call(ctx, &wire.Call{Kind: &wire.Call_Get{Get: get}})
	if err != nil {
		return 0, g.brokenCopy(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for in := wire.NewReader(conn); ; {
		f := new(wire.Copy)
		if err = in.Read(f); err == nil {
			switch m := f.Kind.(type) {
			case *wire.Copy_File:
				err = file(m.File)
			case *wire.Copy_Data:
				err = data(m.Data)
			case *wire.Copy_Done:
				if m.Done.Error == "" {
					return m.Done.LeftOut, nil
				}
				err = &copyError{m.Done.Errno, m.Done.Error}
			default:
				err = &violation{"an empty frame"}
			}
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("the guest ended its answer without a word")
		}
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, g.brokenCopy(err)
		}
	}
}

// violated ends the guest that broke the wire's rules, and says so.
func (k *Keeper) violated(what string) error {
	g, err := k.guest()
	if err != nil {
		return err
	}
	return g.brokenCopy(&violation{what})
}

// checkLooked checks what the guest says of one entry; a name stands for one in
// a folder.
func checkLooked(f *wire.File, name bool) error {
	switch {
	case name && (len(f.Name) > 255 || f.Name == "" || f.Name == "." || f.Name == ".." || strings.ContainsAny(f.Name, "/\x00")):
		return &violation{fmt.Sprintf("%q is no name of an entry", clip(f.Name))}
	case f.Mode&^0o777 != 0:
		return &violation{fmt.Sprintf("%q has mode bits beside the permissions", clip(f.Name))}
	case f.Size != 0 || f.Whole < 0 || f.Whole > 0 && f.Type != wire.FileType_FILE_TYPE_REGULAR:
		return &violation{fmt.Sprintf("%q has an impossible size", clip(f.Name))}
	case f.Type < wire.FileType_FILE_TYPE_UNSPECIFIED || f.Type > wire.FileType_FILE_TYPE_SYMLINK:
		return &violation{fmt.Sprintf("%q is of an unknown type", clip(f.Name))}
	case f.Target != "" && f.Type != wire.FileType_FILE_TYPE_SYMLINK || len(f.Target) > maxCopyName || strings.IndexByte(f.Target, 0) >= 0:
		return &violation{fmt.Sprintf("%q has an impossible target", clip(f.Name))}
	}
	return nil
}

func info(f *wire.File) *api.FileInfo {
	return &api.FileInfo{
		Name: f.Name, Type: api.FileType(f.Type), Mode: f.Mode, Size: f.Whole, Target: f.Target,
		Modified: timestamppb.New(time.Unix(0, f.MtimeNanos)),
	}
}
