package mcp

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

const (
	// mostChanges bounds the changes that one apply takes.
	mostChanges = 10000
	// mostShown bounds the lines of a question to a person: of the changes, and
	// of those that need a yes of their own, which are never applied unshown.
	mostShown = 40
	// mostDiff bounds a diff, in bytes.
	mostDiff = 128 << 10
)

type diffInput struct {
	Paths []string `json:"paths,omitempty" jsonschema:"files or folders of the user's machine, absolute or beneath the shared folder (default: all)"`
}

type applyInput struct {
	Paths  []string `json:"paths,omitempty" jsonschema:"files or folders of the user's machine, absolute or beneath the shared folder (default: all)"`
	Reason string   `json:"reason,omitempty" jsonschema:"a sentence for the user: what the changes are for"`
}

func (s *session) addReview() {
	yes, no := true, false
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "diff", Title: "Show what waits for review", Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: &no},
		Description: "Shows what the sandbox has changed in the folders under review, as a unified diff. None of it is in the user's folders yet.",
	}, s.diff)
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "apply", Title: "Bring changes into the user's folder", Annotations: &sdk.ToolAnnotations{DestructiveHint: &yes, OpenWorldHint: &no},
		Description: "Asks the user to bring what the sandbox changed into the user's own folder, and does so after a yes. The user sees the list of files. It can be undone by the user (carrel undo).",
	}, s.apply)
}

// hostPaths are the paths of the host that the agent means. A relative one lies in
// the first share.
func (s *session) hostPaths(in []string) ([]string, error) {
	var out []string
	for _, p := range in {
		if !filepath.IsAbs(p) {
			shares := s.o.Spec.GetShares()
			if len(shares) == 0 || p == "" {
				return nil, fmt.Errorf("%.200q is not an absolute path", p)
			}
			p = filepath.Join(shares[0].Path, p)
		}
		out = append(out, filepath.Clean(p))
	}
	return out, nil
}

func (s *session) diff(ctx context.Context, req *sdk.CallToolRequest, in diffInput) (*sdk.CallToolResult, any, error) {
	paths, err := s.hostPaths(in.Paths)
	if err != nil {
		return failure(err), nil, nil
	}
	c, guest, err := s.here()
	if err != nil {
		return failure(err), nil, nil
	}
	own, text, err := diffText(ctx, c, guest, paths, mostDiff)
	if err != nil {
		return failure(err), nil, nil
	}
	if text == "" {
		return result(own), nil, nil
	}
	return result(own, untrusted{"changes", text}), nil, nil
}

// diffText is what waits, as one text of about limit bytes at most.
func diffText(ctx context.Context, c *client.Client, guest string, paths []string, limit int) (own, text string, err error) {
	var b strings.Builder
	n, warned, conflicts, left := 0, 0, 0, 0
	err = c.Diff(ctx, guest, client.DiffOptions{Paths: paths}, func(ch *api.Change) error {
		n++
		if ch.Warning != "" {
			warned++
		}
		if ch.Conflict != "" {
			conflicts++
		}
		one := changeLine(ch) + "\n"
		if ch.Diff != "" {
			one += strings.TrimSuffix(ch.Diff, "\n") + "\n"
		}
		if b.Len()+len(one) > limit {
			left++
			return nil
		}
		b.WriteString(one)
		return nil
	})
	if err != nil {
		return "", "", err
	}
	own = fmt.Sprintf("%d changes wait for review in sandbox %s", n, guest)
	if warned > 0 {
		own += fmt.Sprintf("; %d of them need a yes of their own, since programs of the user's machine run or obey these files", warned)
	}
	if conflicts > 0 {
		own += fmt.Sprintf("; %d are in conflict and cannot be applied as they are", conflicts)
	}
	if left > 0 {
		own += fmt.Sprintf("; %d are left out below: ask for single paths", left)
	}
	return own, b.String(), nil
}

// changeLine describes a change in a line.
func changeLine(ch *api.Change) string {
	kind := "changed"
	switch ch.Kind {
	case api.ChangeKind_CHANGE_KIND_ADDED:
		kind = "added"
	case api.ChangeKind_CHANGE_KIND_REMOVED:
		kind = "removed"
	}
	w := kind + " " + line(ch.Path)
	switch {
	case ch.Type == api.EntryType_ENTRY_TYPE_FOLDER:
		w += "/"
	case ch.Type == api.EntryType_ENTRY_TYPE_LINK:
		w += " -> " + line(ch.Target)
	case kind != "removed" && ch.Type == api.EntryType_ENTRY_TYPE_FILE:
		if w += fmt.Sprintf(" (%d bytes)", ch.Size); ch.Mode&0o111 != 0 && ch.OldMode&0o111 == 0 {
			w += ", executable"
		}
	}
	if ch.Warning != "" {
		w += " [" + line(ch.Warning) + "]"
	}
	if ch.Conflict != "" {
		w += " [cannot be applied: " + line(ch.Conflict) + "]"
	}
	return w
}

// shown is what a person was asked to apply.
type shown struct {
	c       *client.Client
	guest   string
	options client.ApplyOptions
	warned  bool // some need a yes of their own
}

// withWarned is the form's field for them.
const withWarned = "with_warned"

func (s *session) apply(ctx context.Context, req *sdk.CallToolRequest, in applyInput) (*sdk.CallToolResult, any, error) {
	what, form, asked, err := s.answer(req, "apply")
	switch {
	case err != nil:
		return failure(err), nil, nil
	case asked:
		sh := what.(*shown)
		sh.options.AcceptWarnings = sh.warned && form[withWarned] == true
		return s.applyShown(ctx, sh)
	case !canAsk(req):
		_, guest, err := s.here()
		if err == nil {
			err = fmt.Errorf("%w; the user can look and apply with `carrel diff %s` and `carrel apply %s`", errCannotAsk, guest, guest)
		}
		return failure(err), nil, nil
	}
	paths, err := s.hostPaths(in.Paths)
	if err != nil {
		return failure(err), nil, nil
	}
	c, guest, err := s.here()
	if err != nil {
		return failure(err), nil, nil
	}
	sh := &shown{c: c, guest: guest, options: client.ApplyOptions{Paths: paths}}
	message, schema, err := sh.question(ctx, in.Reason)
	if err != nil {
		return failure(err), nil, nil
	}
	r, err := s.ask(req, "apply", message, schema, sh)
	if err != nil {
		return failure(err), nil, nil
	}
	return r, nil, nil
}

// question looks at what waits, and remembers it as it is.
func (sh *shown) question(ctx context.Context, reason string) (string, map[string]any, error) {
	var plain, warned []string
	n, stuck := 0, 0
	err := sh.c.Diff(ctx, sh.guest, client.DiffOptions{Paths: sh.options.Paths, NoText: true}, func(ch *api.Change) error {
		switch n++; {
		case n > mostChanges:
			return fmt.Errorf("more than %d changes wait: name paths, and apply in parts", mostChanges)
		case ch.Conflict != "":
			stuck++
			return nil
		case ch.Warning != "":
			warned = append(warned, changeLine(ch))
		default:
			plain = append(plain, changeLine(ch))
		}
		sh.options.Seen = append(sh.options.Seen, ch.Seen)
		return nil
	})
	switch {
	case err != nil:
		return "", nil, err
	case len(plain)+len(warned) == 0 && stuck > 0:
		return "", nil, fmt.Errorf("the %d changes that wait are in conflict: diff says why", stuck)
	case len(plain)+len(warned) == 0:
		return "", nil, errors.New("nothing waits to be applied")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Apply what sandbox %s changed to your own folder?\n", sh.guest)
	if len(plain) > 0 {
		fmt.Fprintf(&b, "\n%d changes:\n", len(plain))
		lines(&b, plain)
	}
	schema := map[string]any{"type": "object", "properties": map[string]any{}}
	if sh.warned = len(warned) > 0 && len(warned) <= mostShown; sh.warned {
		fmt.Fprintf(&b, "\n%d that programs of this machine run or obey. They are applied only if you tick them:\n", len(warned))
		lines(&b, warned)
		schema["properties"] = map[string]any{withWarned: map[string]any{
			"type": "boolean", "default": false, "title": "Also what programs of this machine run or obey",
		}}
	} else if len(warned) > 0 {
		fmt.Fprintf(&b, "\n%d more are run or obeyed by programs of this machine. They stay: use `carrel apply %s` to look at them.\n", len(warned), sh.guest)
	}
	if stuck > 0 {
		fmt.Fprintf(&b, "\n%d more are in conflict and stay.\n", stuck)
	}
	if reason != "" {
		fmt.Fprintf(&b, "\nThe agent says: %q\n", line(reason))
	}
	fmt.Fprintf(&b, "\n`carrel diff %s` shows the text; `carrel undo %s` takes it back.", sh.guest, sh.guest)
	return b.String(), schema, nil
}

func lines(b *strings.Builder, all []string) {
	for i, l := range all {
		if i == mostShown {
			fmt.Fprintf(b, "  ... and %d more\n", len(all)-i)
			return
		}
		b.WriteString("  " + l + "\n")
	}
}

func (s *session) applyShown(ctx context.Context, sh *shown) (*sdk.CallToolResult, any, error) {
	done := 0
	var left []string
	err := sh.c.Apply(ctx, sh.guest, sh.options, func(ev *api.ApplyEvent) error {
		switch {
		case ev.Refused == "":
			done++
		case len(left) < mostShown:
			left = append(left, line(ev.Path)+": "+line(ev.Refused))
		}
		return nil
	})
	if err != nil {
		return failure(err), nil, nil
	}
	own := fmt.Sprintf("the user said yes: %d changes were applied", done)
	if len(left) == 0 {
		return result(own), nil, nil
	}
	r := result(own+"; these were left", untrusted{"changes", strings.Join(left, "\n")})
	r.IsError = done == 0
	return r, nil, nil
}
