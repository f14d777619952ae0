package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// policyService implements PolicyService.
type policyService struct{ d *Daemon }

// maxPolicy bounds a policy file in a request, in bytes.
const maxPolicy = 1 << 20

// Check implements PolicyService.
func (s *policyService) Check(_ context.Context, r *connect.Request[api.CheckPolicyRequest]) (*connect.Response[api.CheckPolicyResponse], error) {
	if len(r.Msg.Content) > maxPolicy {
		return nil, api.NewError(connect.CodeInvalidArgument, "too_large", fmt.Sprintf("the file has %d bytes; %d are possible", len(r.Msg.Content), maxPolicy), "")
	}
	parse := policy.ParseFile
	if r.Msg.Request {
		parse = policy.ParseRequest
	}
	f, problems := parse(r.Msg.Content, r.Msg.Name)
	out := &api.CheckPolicyResponse{Problems: problems}
	if f != nil {
		out.Rules = f.Rules
	}
	return connect.NewResponse(out), nil
}

// Request implements PolicyService.
func (s *policyService) Request(_ context.Context, r *connect.Request[api.RequestPolicyRequest]) (*connect.Response[api.RequestPolicyResponse], error) {
	if !filepath.IsAbs(r.Msg.Folder) {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_path", fmt.Sprintf("%.200q is not an absolute path", r.Msg.Folder), "")
	}
	f, content, problems, err := policy.LoadRequest(filepath.Clean(r.Msg.Folder))
	if err != nil {
		return nil, refusal(err)
	}
	out := &api.RequestPolicyResponse{Present: content != nil, Problems: problems}
	if content == nil {
		return connect.NewResponse(out), nil
	}
	out.Hash = policy.Hash(content)
	if f != nil {
		out.Egress = f.Spec(true)
	}
	if out.Agreed, err = s.d.agreed(filepath.Clean(r.Msg.Folder), content); err != nil {
		return nil, refusal(err)
	}
	return connect.NewResponse(out), nil
}

// Agree implements PolicyService: the content must still be what was agreed to.
func (s *policyService) Agree(_ context.Context, r *connect.Request[api.AgreePolicyRequest]) (*connect.Response[api.AgreePolicyResponse], error) {
	if !filepath.IsAbs(r.Msg.Folder) {
		return nil, api.NewError(connect.CodeInvalidArgument, "bad_path", fmt.Sprintf("%.200q is not an absolute path", r.Msg.Folder), "")
	}
	folder := filepath.Clean(r.Msg.Folder)
	f, content, problems, err := policy.LoadRequest(folder)
	name := filepath.Join(folder, policy.RequestName)
	switch {
	case err != nil:
		return nil, refusal(err)
	case content == nil:
		return nil, api.NewError(connect.CodeNotFound, "not_found", "there is no "+name, "")
	case f == nil || len(problems) > 0:
		return nil, api.NewError(connect.CodeInvalidArgument, "policy_invalid", policy.Problems(name, problems), "")
	case policy.Hash(content) != r.Msg.Hash:
		return nil, api.NewError(connect.CodeAborted, "changed", name+" is no longer what was agreed to", "look at it again: carrel policy agree "+folder)
	}
	if err := s.d.agree(folder, r.Msg.Hash); err != nil {
		return nil, refusal(err)
	}
	s.d.log.Info("agreed", "file", name, "sha256", r.Msg.Hash)
	return connect.NewResponse(&api.AgreePolicyResponse{}), nil
}

// agreedFile, in the config folder, lists what the user has agreed to.
func (d *Daemon) agreedFile() string { return filepath.Join(d.opts.Place.Config, "agreed.json") }

// agreed says whether the user has agreed to exactly this content in this folder.
func (d *Daemon) agreed(folder string, content []byte) (bool, error) {
	a, err := policy.LoadAgreements(d.agreedFile())
	if err != nil {
		return false, err
	}
	return a.Has(folder, policy.Hash(content)), nil
}

func (d *Daemon) agree(folder, hash string) error {
	d.policyMu.Lock()
	defer d.policyMu.Unlock()
	a, err := policy.LoadAgreements(d.agreedFile())
	if err != nil {
		return err
	}
	return a.Add(folder, hash)
}

// addToPolicy writes a rule into policy.yaml, for every guest.
func (d *Daemon) addToPolicy(r *api.EgressRule) error {
	d.policyMu.Lock()
	defer d.policyMu.Unlock()
	path := filepath.Join(d.opts.Place.Config, policyFile)
	if _, err := policy.Load(path); err != nil { // what cannot be read is not to be added to
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if content, err = policy.AppendRule(content, r); err != nil {
		return err
	}
	if _, problems := policy.ParseFile(content, policyFile); len(problems) > 0 {
		return errors.New(policy.Problems(path, problems))
	}
	return policy.WriteFile(path, content)
}
