package mcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// maxPorts bounds the ports that an agent opens.
const maxPorts = 16

type allowInput struct {
	Host   string `json:"host" jsonschema:"HOST or HOST:PORT (default port 443); *.example.org is every host below example.org"`
	Reason string `json:"reason" jsonschema:"a sentence for the user: what it is needed for"`
}

type portsInput struct {
	Open  uint32 `json:"open,omitempty" jsonschema:"a port of the sandbox to open to the user's machine"`
	Close uint32 `json:"close,omitempty" jsonschema:"a port of the user's machine to close again"`
}

func (s *session) addReach() {
	yes, no := true, false
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "allow_host", Title: "Let the sandbox reach a host", Annotations: &sdk.ToolAnnotations{OpenWorldHint: &yes, DestructiveHint: &no},
		Description: "Asks the user to let the sandbox reach a network host, for as long as the sandbox exists.",
	}, s.allow)
	sdk.AddTool(s.server, &sdk.Tool{
		Name: "ports", Title: "Ports into the sandbox", Annotations: &sdk.ToolAnnotations{OpenWorldHint: &no, DestructiveHint: &no},
		Description: "Opens a port of the sandbox, such as a development server's, to the user's own machine, closes one, or lists those that are open. Which port of the user's machine it gets is answered.",
	}, s.ports)
}

// reach is what a person was asked to allow.
type reach struct {
	c     *client.Client
	guest string
	rule  *api.EgressRule
	shown string
}

func (s *session) allow(ctx context.Context, req *sdk.CallToolRequest, in allowInput) (*sdk.CallToolResult, any, error) {
	what, _, asked, err := s.answer(req, "allow_host")
	switch {
	case err != nil:
		return failure(err), nil, nil
	case asked:
		return s.allowShown(ctx, what.(*reach))
	case !canAsk(req):
		_, guest, err := s.here()
		if err != nil { // it would be started for the question
			guest = "NAME"
		}
		return failure(fmt.Errorf("%w; the user can allow a host with `carrel allow %s HOST`", errCannotAsk, guest)), nil, nil
	}
	host, port, err := client.ParseHostPort(in.Host)
	switch {
	case err != nil:
		return failure(err), nil, nil
	case !askable(host):
		return failure(errors.New("name one host, or *.example.org, in ASCII (an international name as xn--)")), nil, nil
	}
	if port == 0 {
		port = 443
	}
	c, guest, _, err := s.in(ctx)
	if err != nil {
		return failure(err), nil, nil
	}
	r := &reach{c: c, guest: guest, shown: net.JoinHostPort(host, fmt.Sprint(port))}
	r.rule = &api.EgressRule{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: host, Ports: []uint32{port}}
	message := fmt.Sprintf("Let sandbox %s reach %s?\n\nWhat is in the sandbox can be sent there, for as long as the sandbox exists.", guest, r.shown)
	if strings.HasPrefix(host, "*.") {
		message += " It is every host whose name ends in " + host[1:] + "."
	}
	if in.Reason != "" {
		message += fmt.Sprintf("\n\nThe agent says: %q", line(in.Reason))
	}
	out, err := s.ask(req, "allow_host", message, nil, r)
	if err != nil {
		return failure(err), nil, nil
	}
	return out, nil, nil
}

// askable says whether a person can be asked about a host: what no host is made of
// would only be words of the agent's in our question, of any length.
func askable(host string) bool {
	return host != "*" && len(host) <= 253 && !strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:*", r))
	})
}

func (s *session) allowShown(ctx context.Context, r *reach) (*sdk.CallToolResult, any, error) {
	if _, err := r.c.ChangeEgress(ctx, r.guest, []*api.EgressRule{r.rule}, nil); err != nil {
		return failure(err), nil, nil
	}
	own := "the user said yes: the sandbox may reach " + r.shown
	// Another rule may be stronger, and then this one is of no use.
	if !strings.Contains(r.rule.Host, "*") {
		v, err := r.c.TestEgress(ctx, r.guest, "", r.shown)
		if err == nil && v.GetAction() != api.EgressAction_EGRESS_ACTION_ALLOW && v.GetAction() != api.EgressAction_EGRESS_ACTION_ASK {
			return failure(fmt.Errorf("the user said yes, but another rule refuses %s: %s", r.shown, v.GetReason())), nil, nil
		}
	}
	return result(own), nil, nil
}

func (s *session) ports(ctx context.Context, req *sdk.CallToolRequest, in portsInput) (*sdk.CallToolResult, any, error) {
	c, guest, note, err := s.in(ctx)
	if err != nil {
		return failure(err), nil, nil
	}
	switch {
	case in.Open > 0 && in.Close > 0:
		err = errors.New("open or close, one at a time")
	case in.Open > 65535 || in.Close > 65535:
		err = errors.New("a port is 1 to 65535")
	case in.Open > 0:
		var g *api.Guest
		if g, err = c.Guest(ctx, guest); err == nil && len(g.Ports) >= maxPorts {
			err = fmt.Errorf("%d ports are open: close one first", len(g.Ports))
		}
		if err == nil {
			// The host chooses its port, so that no guest takes the place of
			// a program that is expected at one.
			_, err = c.Publish(ctx, guest, &api.Port{GuestPort: in.Open})
		}
	case in.Close > 0:
		err = c.Unpublish(ctx, guest, in.Close)
	}
	if err != nil {
		return failure(err), nil, nil
	}
	g, err := c.Guest(ctx, guest)
	if err != nil {
		return failure(err), nil, nil
	}
	own := note
	for _, p := range g.Ports {
		own += fmt.Sprintf("http://127.0.0.1:%d on the user's machine is port %d of the sandbox\n", p.HostPort, p.GuestPort)
	}
	if len(g.Ports) == 0 {
		own += "no port is open"
	}
	return result(own), nil, nil
}
