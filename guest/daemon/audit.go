package daemon

import (
	"context"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/audit"
)

// auditService implements AuditService. The log's lines may have been written
// by a process that a guest took over: they are bounded, held to their form, and
// not looked into.
type auditService struct{ d *Daemon }

// Verify implements AuditService.
func (s *auditService) Verify(_ context.Context, r *connect.Request[api.VerifyAuditRequest]) (*connect.Response[api.VerifyAuditResponse], error) {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return nil, err
	}
	rep, err := audit.Verify(s.d.auditDir(e.name))
	if err != nil {
		return nil, auditError(err)
	}
	return connect.NewResponse(&api.VerifyAuditResponse{Records: rep.Records, Intact: rep.Intact, Broken: rep.Broken, Head: rep.Head}), nil
}

// Show implements AuditService.
func (s *auditService) Show(ctx context.Context, r *connect.Request[api.ShowAuditRequest], st *connect.ServerStream[api.ShowAuditResponse]) error {
	e, err := s.d.find(r.Msg.Guest)
	if err != nil {
		return err
	}
	if r.Msg.Last < 0 {
		return api.NewError(connect.CodeInvalidArgument, "bad_number", "a negative number of records", "")
	}
	var gone error // the caller
	err = audit.Show(s.d.auditDir(e.name), int(r.Msg.Last), func(line []byte) error {
		if gone = ctx.Err(); gone == nil {
			gone = st.Send(&api.ShowAuditResponse{Record: line})
		}
		return gone
	})
	if gone != nil {
		return gone
	}
	if err != nil {
		return auditError(err)
	}
	return nil
}

func auditError(err error) error {
	cause, cure := apart(err.Error())
	return api.NewError(connect.CodeDataLoss, "audit", cause, cure)
}
