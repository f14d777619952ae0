package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
)

// EdgeRequest is what a daemon hands to an egress process over an inherited
// descriptor: it may hold secrets, and so never passes a keeper, an environment
// or a command line.
type EdgeRequest struct {
	Guest string
	// Socket is where the egress process listens for the daemon.
	Socket string
	// Audit is the guest's audit folder.
	Audit string
	// Configure is what holds from the start.
	Configure *api.ConfigureEdgeRequest
}

// maxEdgeRequest bounds it, in bytes: secrets of 64 KiB are the most of it.
const maxEdgeRequest = 16 << 20

type edgeRequest struct {
	Guest, Socket, Audit string
	Configure            json.RawMessage
}

// WriteEdgeRequest writes r.
func WriteEdgeRequest(w io.Writer, r EdgeRequest) error {
	raw, err := protojson.Marshal(r.Configure)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(edgeRequest{r.Guest, r.Socket, r.Audit, raw})
}

// ReadEdgeRequest reads what WriteEdgeRequest wrote.
func ReadEdgeRequest(in io.Reader) (r EdgeRequest, err error) {
	var raw edgeRequest
	dec := json.NewDecoder(io.LimitReader(in, maxEdgeRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&raw); err != nil {
		return r, fmt.Errorf("read the request: %w (carreld egress is started by the daemon)", err)
	}
	r = EdgeRequest{Guest: raw.Guest, Socket: raw.Socket, Audit: raw.Audit, Configure: new(api.ConfigureEdgeRequest)}
	if err := protojson.Unmarshal(raw.Configure, r.Configure); err != nil {
		return EdgeRequest{}, fmt.Errorf("read the request: %w (carreld egress is started by the daemon)", err)
	}
	return r, nil
}

// EdgeSocketPath is where a guest's egress process listens.
func EdgeSocketPath(run, name string) string {
	return filepath.Join(run, "e"+filepath.Base(SocketPath(run, name))[1:])
}
