package client

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
)

func (c *Client) auditService() apiconnect.AuditServiceClient {
	return apiconnect.NewAuditServiceClient(&http.Client{Transport: c.transport}, "http://carrel", connect.WithReadMaxBytes(maxMessage))
}

// VerifyAudit checks the chain of a guest's audit log.
func (c *Client) VerifyAudit(ctx context.Context, guest string) (*api.VerifyAuditResponse, error) {
	if err := CheckName("guest", guest); err != nil {
		return nil, err
	}
	res, err := c.auditService().Verify(ctx, connect.NewRequest(&api.VerifyAuditRequest{Guest: guest}))
	if err != nil {
		return nil, wrap("verify the audit log of guest "+guest, err)
	}
	return res.Msg, nil
}

// ShowAudit calls f with the last records of a guest's audit log, oldest first;
// 0: with all. A record is one JSON object in printable ASCII, and f's only
// until it returns.
func (c *Client) ShowAudit(ctx context.Context, guest string, last int, f func(record []byte) error) error {
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	op := "show the audit log of guest " + guest
	st, err := c.auditService().Show(ctx, connect.NewRequest(&api.ShowAuditRequest{Guest: guest, Last: int32(min(max(last, 0), 1<<30))}))
	if err != nil {
		return wrap(op, err)
	}
	defer st.Close()
	for st.Receive() {
		if err := f(st.Msg().Record); err != nil {
			return err
		}
	}
	return wrap(op, st.Err())
}
