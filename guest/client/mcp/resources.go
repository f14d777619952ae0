package mcp

import (
	"context"
	"errors"
	"fmt"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/client"
)

const (
	changesURI = "carrel://changes"
	logsURI    = "carrel://logs/"
	// mostResource bounds a resource, in bytes, and mostLogs the logs that are
	// listed: older ones can still be read by their address.
	mostResource, mostLogs = 1 << 20, 64
)

func logURI(task string) string { return logsURI + task }

func (s *session) addResources() {
	s.server.AddResource(&sdk.Resource{
		URI: changesURI, Name: "changes", Title: "What waits for review", MIMEType: "text/plain",
		Description: "What the sandbox of this session has changed in the folders under review.",
	}, s.readChanges)
	s.server.AddResourceTemplate(&sdk.ResourceTemplate{
		URITemplate: logsURI + "{task}", Name: "log", Title: "A command's whole output", MIMEType: "text/plain",
		Description: "What a command of this session wrote, standard output and standard error in the order in which it came, at most 1 MiB from its beginning and end.",
	}, s.readLog)
}

// addLog lists the log of a task.
func (s *session) addLog(task string) {
	uri := logURI(task)
	s.mu.Lock()
	s.logs = append(s.logs, uri)
	var gone []string
	if n := len(s.logs) - mostLogs; n > 0 {
		gone = append(gone, s.logs[:n]...)
		s.logs = append([]string(nil), s.logs[n:]...)
	}
	s.mu.Unlock()
	s.server.AddResource(&sdk.Resource{URI: uri, Name: "log " + task, Title: "Output of task " + task, MIMEType: "text/plain"}, s.readLog)
	if len(gone) > 0 {
		s.server.RemoveResources(gone...)
	}
}

func content(uri string, u untrusted) *sdk.ReadResourceResult {
	return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{{
		URI: uri, MIMEType: "text/plain", Text: u.mark(), Meta: sdk.Meta{metaUntrusted: true},
	}}}
}

func (s *session) readChanges(ctx context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
	c, guest, err := s.here()
	if err != nil {
		return content(changesURI, untrusted{"changes", ""}), nil
	}
	own, text, err := diffText(ctx, c, guest, nil, mostResource)
	if err != nil {
		return nil, unread(err)
	}
	return content(changesURI, untrusted{"changes", own + "\n" + text}), nil
}

func (s *session) readLog(ctx context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
	task := strings.TrimPrefix(req.Params.URI, logsURI)
	c, guest, err := s.here()
	if err != nil {
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	}
	out := &bounded{limit: mostResource}
	p, err := c.Attach(ctx, guest, task, client.AttachOptions{NoFollow: true, Stdout: out, Stderr: out})
	if err == nil {
		err = p.Wait()
	}
	var exit *client.ExitError
	switch {
	case err == nil || errors.As(err, &exit):
		return content(req.Params.URI, untrusted{fmt.Sprintf("task %.26s", task), out.String()}), nil
	case client.CodeOf(err) == "not_found" || client.CodeOf(err) == "bad_request":
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	}
	return nil, unread(err)
}

// unread is err in our own words: an error of the protocol has no part for others'.
func unread(err error) error {
	if own, _, foreign := outside(err); foreign {
		return errors.New(own)
	}
	return err
}
