package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// ParseHostPort reads HOST[:PORT] as a person writes it for a rule: a name,
// "*.suffix", "*", or an address, in brackets if it is one of IPv6 and a port
// follows. port is 0 if there is none. The daemon checks the host itself.
func ParseHostPort(s string) (host string, port uint32, err error) {
	bad := func(why string) (string, uint32, error) {
		return "", 0, &Error{Code: "bad_host", Message: fmt.Sprintf("%.200q is not HOST or HOST:PORT", s), Cause: why, Cure: "example.org, example.org:8443, \"*.example.org\" or [2001:db8::1]:443"}
	}
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		return s, 0, nil
	}
	host, rest := s, ""
	inner, after, bracketed := strings.Cut(strings.TrimPrefix(s, "["), "]")
	if bracketed = bracketed && strings.HasPrefix(s, "["); bracketed {
		host, rest = inner, after
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	}
	switch {
	case !bracketed && strings.ContainsAny(host, ":[]"):
		return bad("an address of IPv6 with a port needs brackets")
	case host == "":
		return bad("the host is missing")
	case strings.ContainsAny(s, "/@ "):
		return bad("it has a scheme, a path, a user or a space")
	case rest == "":
		return host, 0, nil
	case rest[0] != ':':
		return bad("something follows the bracket")
	}
	n, err := strconv.ParseUint(rest[1:], 10, 16)
	if err != nil || n == 0 {
		return bad("the port is not a number from 1 to 65535")
	}
	return host, uint32(n), nil
}

// Egress returns the rules in effect for a guest, and what is not as they alone
// would have it.
func (c *Client) Egress(ctx context.Context, guest string) (*api.ExplainEgressResponse, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.egress.Explain(ctx, connect.NewRequest(&api.ExplainEgressRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("explain what guest "+guest+" reaches", err)
	}
	return res.Msg, nil
}

// ChangeEgress adds rules to a guest and takes rules away. When it returns, the
// rules hold, and connections that they do not cover are closed.
func (c *Client) ChangeEgress(ctx context.Context, guest string, add, remove []*api.EgressRule) (*api.ChangeEgressResponse, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.egress.Change(ctx, connect.NewRequest(&api.ChangeEgressRequest{Guest: guest, Add: add, Remove: remove}))
	if err != nil {
		return nil, wrap("change what guest "+guest+" reaches", err)
	}
	return res.Msg, nil
}

// TestEgress says what would happen to a request; nothing is sent. Without a
// guest it is what policy.yaml alone would say.
func (c *Client) TestEgress(ctx context.Context, guest, method, url string) (*api.EgressVerdict, error) {
	if guest != "" {
		if err := CheckName("guest", guest); err != nil {
			return nil, err
		}
	}
	res, err := c.egress.Test(ctx, connect.NewRequest(&api.TestEgressRequest{Guest: guest, Url: url, Method: method}))
	if err != nil {
		return nil, wrap(fmt.Sprintf("test %.200q", url), err)
	}
	return res.Msg.GetVerdict(), nil
}

// WatchOptions say which of a guest's verdicts are wanted.
type WatchOptions struct {
	// Follow goes on with new ones until the guest ends or ctx does.
	Follow bool
	// Last is how many of the past ones come first; 0: all that are kept.
	Last int32
}

// WatchEgress calls f, in order and from one goroutine, with each verdict about
// a guest. What is in them is the guest's word in part: a name, a path.
func (c *Client) WatchEgress(ctx context.Context, guest string, o WatchOptions, f func(*api.EgressEvent) error) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	op := "watch what guest " + guest + " reaches"
	st, err := c.egress.Watch(ctx, connect.NewRequest(&api.WatchEgressRequest{Guest: guest, Follow: o.Follow, Last: o.Last}))
	if err != nil {
		return wrap(op, err)
	}
	defer st.Close()
	// The HTTP/2 transport looks at a request's context only while it writes,
	// and this one has been written.
	defer context.AfterFunc(ctx, func() { st.Close() })()
	for st.Receive() {
		if err := f(st.Msg()); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return wrap(op, st.Err())
}

// AnswerEgress decides a question that a rule raised.
func (c *Client) AnswerEgress(ctx context.Context, guest, question string, a api.EgressAnswer) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	_, err := c.egress.Answer(ctx, connect.NewRequest(&api.AnswerEgressRequest{Guest: guest, Question: question, Answer: a}))
	return wrap(fmt.Sprintf("answer question %.40q of guest %s", question, guest), err)
}

// Publish opens a port of the host's loopback into a guest, until the guest
// ends. It returns the port as it is: host port 0 lets the host choose.
func (c *Client) Publish(ctx context.Context, guest string, p *api.Port) (*api.Port, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	req := &api.PublishRequest{Guest: guest, Port: p, IdempotencyKey: rand.Text()}
	res, err := twice(ctx, c, func() (*connect.Response[api.PublishResponse], error) {
		return c.egress.Publish(ctx, connect.NewRequest(req))
	})
	if err != nil {
		return nil, wrap(fmt.Sprintf("open port %d into guest %s", p.GetHostPort(), guest), err)
	}
	return res.Msg.GetPort(), nil
}

// Unpublish closes a port of the host.
func (c *Client) Unpublish(ctx context.Context, guest string, hostPort uint32) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	_, err := c.egress.Unpublish(ctx, connect.NewRequest(&api.UnpublishRequest{Guest: guest, HostPort: hostPort}))
	return wrap(fmt.Sprintf("close port %d into guest %s", hostPort, guest), err)
}
