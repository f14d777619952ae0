package mcp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/client"
)

const (
	mostWritten = 4 << 20 // bytes of one write_file
	// mostListed bounds the entries of one answer, and mostDepth how deep they lie.
	mostListed, mostDepth = 1000, 8
)

type readInput struct {
	Path     string `json:"path" jsonschema:"the file; a relative path begins in the shared folder"`
	Offset   int64  `json:"offset,omitempty" jsonschema:"bytes to leave out at the beginning"`
	MaxBytes int    `json:"max_bytes,omitempty" jsonschema:"at most so many bytes (default 32768, at most 262144)"`
	Base64   bool   `json:"base64,omitempty" jsonschema:"answer in base64: for what is no text"`
}

type writeInput struct {
	Path       string `json:"path" jsonschema:"the file; it is replaced, and folders that lead to it are made"`
	Content    string `json:"content" jsonschema:"all of what is to be in it"`
	Base64     bool   `json:"base64,omitempty" jsonschema:"content is base64"`
	Executable bool   `json:"executable,omitempty" jsonschema:"it can be run"`
}

type listInput struct {
	Path  string `json:"path,omitempty" jsonschema:"the folder (default: the shared one)"`
	Depth int    `json:"depth,omitempty" jsonschema:"how many levels of folders (default 1, at most 8)"`
}

func (s *session) addFiles() {
	no := false
	reads := &sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: &no}
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "read_file", Title: "Read a file in the sandbox", Annotations: reads,
		Description: "Reads a file in the sandbox, or a part of it. Characters that cannot be seen are shown as escapes.",
	}, s.read)
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "write_file", Title: "Write a file in the sandbox", Annotations: &sdk.ToolAnnotations{OpenWorldHint: &no, IdempotentHint: true},
		Description: "Writes a file in the sandbox, at most 4 MiB. In a folder under review the user's own file stays as it is until apply.",
	}, s.write)
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "list_files", Title: "List a folder in the sandbox", Annotations: reads,
		Description: "Lists what is in a folder in the sandbox: type, size and path, one entry a line.",
	}, s.list)
}

func (s *session) files(ctx context.Context, p string) (files *client.Files, name, note string, err error) {
	p, err = s.path(p)
	if err != nil {
		return nil, "", "", err
	}
	c, guest, note, err := s.in(ctx)
	if err != nil {
		return nil, "", "", err
	}
	files, err = c.Files(ctx, guest, "/", "")
	if name = strings.TrimPrefix(path.Clean(p), "/"); name == "" {
		name = "."
	}
	return files, name, note, err
}

func (s *session) read(ctx context.Context, req *sdk.CallToolRequest, in readInput) (*sdk.CallToolResult, any, error) {
	limit := clamp(in.MaxBytes, usualText)
	if in.Offset < 0 {
		return failure(errors.New("offset is negative")), nil, nil
	}
	files, name, note, err := s.files(ctx, in.Path)
	if err != nil {
		return failure(err), nil, nil
	}
	f, err := files.Open(name)
	if err != nil {
		return failure(err), nil, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && fi.IsDir() {
		err = errors.New("it is a folder: list_files shows what is in it")
	}
	if err == nil {
		_, err = f.(io.Seeker).Seek(min(in.Offset, fi.Size()), io.SeekStart)
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, int64(limit)))
	}
	if err != nil {
		return failure(err), nil, nil
	}
	from := min(in.Offset, fi.Size())
	if !in.Base64 && from+int64(len(b)) < fi.Size() {
		b = whole(b)
	}
	own := fmt.Sprintf("%sbytes %d to %d of %d", note, from, from+int64(len(b)), fi.Size())
	text := string(b)
	switch {
	case in.Base64:
		own, text = own+", in base64", base64.StdEncoding.EncodeToString(b)
	case !utf8.Valid(b):
		own += "; it is not UTF-8, and what is not text is shown as escapes (base64 gives it as it is)"
	case visible(text) != text:
		own += "; some characters in it cannot be seen and are shown as escapes (base64 gives it as it is)"
	}
	return result(own, untrusted{"file " + line(in.Path), text}), nil, nil
}

// whole takes the beginning of a character off the end of b.
func whole(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
}

func (s *session) write(ctx context.Context, req *sdk.CallToolRequest, in writeInput) (*sdk.CallToolResult, any, error) {
	data := []byte(in.Content)
	if in.Base64 {
		var err error
		if data, err = base64.StdEncoding.DecodeString(in.Content); err != nil {
			return failure(fmt.Errorf("content is not base64: %w", err)), nil, nil
		}
	}
	if len(data) > mostWritten {
		return failure(fmt.Errorf("content has %d bytes; %d are possible", len(data), mostWritten)), nil, nil
	}
	files, name, note, err := s.files(ctx, in.Path)
	if err != nil {
		return failure(err), nil, nil
	}
	mode := fs.FileMode(0o644)
	if in.Executable {
		mode = 0o755
	}
	err = files.WriteFile(name, data, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = files.MkdirAll(path.Dir(name), 0o755); err == nil {
			err = files.WriteFile(name, data, mode)
		}
	}
	if err != nil {
		return failure(err), nil, nil
	}
	return result(fmt.Sprintf("%swrote %d bytes", note, len(data))), nil, nil
}

var errEnough = errors.New("enough")

func (s *session) list(ctx context.Context, req *sdk.CallToolRequest, in listInput) (*sdk.CallToolResult, any, error) {
	depth := in.Depth
	if depth <= 0 {
		depth = 1
	}
	depth = min(depth, mostDepth)
	p := in.Path
	if p == "" {
		if p = s.o.Dir; p == "" {
			p = "/"
		}
	}
	files, name, note, err := s.files(ctx, p)
	if err != nil {
		return failure(err), nil, nil
	}
	var b strings.Builder
	n, closed := 0, 0
	var walk func(dir, shown string, depth int) error
	walk = func(dir, shown string, depth int) error {
		in, err := files.ReadDir(dir)
		if errors.Is(err, client.ErrLeftOut) {
			closed++
		} else if err != nil {
			return err
		}
		for _, e := range in {
			if n++; n > mostListed || b.Len() > mostText {
				return errEnough
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			at := path.Join(shown, e.Name())
			switch {
			case e.IsDir():
				fmt.Fprintf(&b, "folder %s/\n", line(at))
				if depth > 1 {
					if err := walk(path.Join(dir, e.Name()), at, depth-1); errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
						closed++
					} else if err != nil {
						return err
					}
				}
			case e.Type()&fs.ModeSymlink != 0:
				to, _ := files.ReadLink(path.Join(dir, e.Name()))
				fmt.Fprintf(&b, "link %s -> %s\n", line(at), line(to))
			case !e.Type().IsRegular():
				fmt.Fprintf(&b, "other %s\n", line(at))
			default:
				fmt.Fprintf(&b, "file %s (%d bytes)\n", line(at), fi.Size())
			}
		}
		return nil
	}
	err = walk(name, "", depth)
	own := fmt.Sprintf("%s%d entries", note, n)
	switch {
	case errors.Is(err, errEnough):
		own = fmt.Sprintf("%sthe first %d entries; there are more: list a folder in it, or fewer levels", note, n-1)
	case err != nil:
		return failure(err), nil, nil
	}
	if closed > 0 {
		own += fmt.Sprintf("; %d folders could not be read, or not whole", closed)
	}
	if b.Len() == 0 {
		return result(own), nil, nil
	}
	return result(own, untrusted{"folder " + line(p), b.String()}), nil, nil
}
