package place

import (
	"fmt"
	"net"
	"os"
)

// CheckPeer returns an error unless the process at the other end of c runs as
// this user. Both ends call it: the daemon before it answers, the client before
// it says anything.
func CheckPeer(c *net.UnixConn) error {
	uid, err := PeerUID(c)
	if err != nil {
		return err
	}
	if own := os.Geteuid(); uid != own {
		return fmt.Errorf("the other end of the socket runs as user %d, not as you (%d)", uid, own)
	}
	return nil
}
