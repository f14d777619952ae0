package daemon

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// Import implements PolicyService.
func (s *policyService) Import(_ context.Context, r *connect.Request[api.ImportPolicyRequest]) (*connect.Response[api.ImportPolicyResponse], error) {
	if r.Msg.From != "srt" {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_request", fmt.Sprintf("settings of %.40q cannot be imported", r.Msg.From), "srt's can: carrel policy import --srt FILE")
	}
	if len(r.Msg.Content) > maxPolicy {
		return nil, api.NewError(connect.CodeInvalidArgument, "too_large", fmt.Sprintf("the settings have %d bytes; %d are possible", len(r.Msg.Content), maxPolicy), "")
	}
	file, lines, err := policy.ImportSRT(r.Msg.Content)
	if err != nil {
		return nil, api.NewError(connect.CodeInvalidArgument, "policy_invalid", err.Error(), "")
	}
	out := &api.ImportPolicyResponse{Policy: file}
	for _, l := range lines {
		out.Keys = append(out.Keys, &api.ImportedKey{Key: l.Key, Mapping: string(l.Mapping), Text: l.Text})
	}
	return connect.NewResponse(out), nil
}
