package selftest

import (
	"fmt"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// protocol wants a family of sockets by the name that /proc/net/protocols has for it. A task's filter
// refuses some families, so none is opened.
func protocol(name string) func() (string, error) {
	return func() (string, error) { return "", listed("/proc/net/protocols", name) }
}

// apart runs f in a network of its own.
func apart(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func ipv6() (string, error) {
	return "", closing(unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
}

// links makes a link of each kind. The request is put together here: the library's LinkAdd knows all kinds
// there are, which would make the agent a twentieth larger.
func links() (string, error) {
	return "", apart(func() error {
		for _, kind := range []string{"dummy", "bridge", "veth"} {
			r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
			r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
			info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
			r.AddData(info)
			if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
		return nil
	})
}

func inetDiag() (string, error) {
	_, err := netlink.SocketDiagTCP(unix.AF_INET)
	return "", err
}

// nftables loads what the agent's rules and a container's network are made of.
func nftables() (string, error) {
	return "", apart(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6, nft.TableFamilyINet} {
			t := c.AddTable(&nft.Table{Family: family, Name: "selftest"})
			out := c.AddChain(&nft.Chain{Name: "out", Table: t, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookOutput, Priority: nft.ChainPriorityNATDest})
			c.AddRule(&nft.Rule{Table: t, Chain: out, Exprs: []expr.Any{
				&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
				&expr.Redir{},
			}})
			post := c.AddChain(&nft.Chain{Name: "post", Table: t, Type: nft.ChainTypeNAT, Hooknum: nft.ChainHookPostrouting, Priority: nft.ChainPriorityNATSource})
			c.AddRule(&nft.Rule{Table: t, Chain: post, Exprs: []expr.Any{&expr.Masq{}}})
		}
		return c.Flush()
	})
}
