package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/api/apiconnect"
	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
	"github.com/carrel-vm/carrel/guest/place"
)

// site is a host in a small internet of its own (egresstest): the released
// daemon, keepers and egress processes run at its end of the cable, and have no
// way of knowing that there is no more world than that.
type site struct {
	*world
	net   *egresstest.World
	c     *client.Client
	out   apiconnect.EgressServiceClient
	guest string
	// tools is shared with the guests as /tools, read only.
	tools    string
	boundary string
	second   bool  // the guest "other" is there
	audited  int64 // bytes of the guest's audit log, once they were asked for
}

// newSite starts a daemon in the world with a policy file and, as secrets, the
// world's own key and token.
func newSite(t *testing.T, boundary, policy string) *site {
	t.Helper()
	return newSiteIn(t, egresstest.New(t), boundary, policy)
}

// newSiteIn is newSite in a world that is there, with more variables for the
// daemon.
func newSiteIn(t *testing.T, net *egresstest.World, boundary, policy string, env ...string) *site {
	t.Helper()
	s := &site{world: newRing2(t), net: net, guest: "box", boundary: boundary}
	s.bin = vmBinaries(t)
	p, err := place.Home()
	if err != nil {
		t.Fatal(err)
	}
	// No desktop session: secrets are kept in the file.
	s.env = []string{"CARREL_CACHE=" + p.Cache, "DBUS_SESSION_BUS_ADDRESS=", "XDG_RUNTIME_DIR="}
	s.env = append(s.env, env...)
	s.tools = filepath.Join(s.work, "tools")
	for d, mode := range map[string]os.FileMode{s.tools: 0o755, filepath.Join(s.home, "config"): 0o700} {
		if err := os.Mkdir(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{filepath.Dir(s.work), s.work} { // the guest's user comes by here, too
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.home, "config", "policy.yaml"), policy)
	cmd := exec.Command("go", "build", "-o", filepath.Join(s.tools, "plain"), "./cmd/carreld/testdata/plain")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	s.start()
	s.c = s.client()
	hc := unixClient(filepath.Join(s.home, "run", "d.sock"))
	hc.Timeout = 0
	s.out = apiconnect.NewEgressServiceClient(hc, "http://carrel")
	secrets := apiconnect.NewSecretServiceClient(hc, "http://carrel")
	for _, x := range []*api.SetSecretRequest{
		{Name: "anthropic", Definition: &api.SecretDefinition{Preset: "anthropic"}, Value: []byte(egresstest.OwnKey)},
		{Name: "github", Definition: &api.SecretDefinition{Preset: "github", Repositories: []string{egresstest.PrivateRepository}}, Value: []byte(egresstest.GitToken)},
	} {
		if _, err := secrets.Set(t.Context(), connect.NewRequest(x)); err != nil {
			t.Fatalf("secret %s: %v", x.Name, err)
		}
	}
	return s
}

// box starts a guest.
func (s *site) box(t *testing.T, name string, e *api.EgressSpec) {
	t.Helper()
	spec := &api.GuestSpec{
		Name: name, MemoryMib: 1024, Boundary: s.boundary, Egress: e,
		Shares: []*api.Share{{Path: s.tools, GuestPath: "/tools", Mode: api.ShareMode_SHARE_MODE_RO}},
	}
	g, err := s.c.StartGuest(t.Context(), spec, client.GuestOptions{})
	if err != nil {
		t.Fatalf("%v\nagain: make image, then go test -run %s ./cmd/carreld", err, t.Name())
	}
	if g.Boundary != s.boundary {
		t.Fatalf("the guest is behind the wall %q, not %q", g.Boundary, s.boundary)
	}
}

// few are the first n of many in an emulated machine, where each program takes
// seconds to start, and all of them behind the process wall.
func few[T any](s *site, n int, all []T) []T {
	if s.boundary != "vm" {
		return all
	}
	return all[:scaled(min(n, len(all)), len(all))]
}

// other runs f in a second guest, which has nothing of the first one's but a
// plain rule for the API. It stays for the next who asks.
func (s *site) other(t *testing.T, f func()) {
	t.Helper()
	box := s.guest
	defer func() { s.guest = box }()
	s.guest = "other"
	if !s.second {
		s.box(t, s.guest, &api.EgressSpec{Rules: []*api.EgressRule{{Action: api.EgressAction_EGRESS_ACTION_ALLOW, Host: "api.anthropic.com"}}})
		s.second = true
	}
	f()
}

// sh runs a script as the guest's user, root as its root.
func (s *site) sh(t *testing.T, script string) string {
	t.Helper()
	return sh(t, s.c, s.guest, "", script).out
}

func (s *site) root(t *testing.T, script string) string {
	t.Helper()
	return sh(t, s.c, s.guest, "root", script).out
}

// plain runs the program that knows of nothing, as the guest's user, and returns
// the line for each thing that it tried.
func (s *site) plain(t *testing.T, args ...string) map[string]string {
	t.Helper()
	return s.plainAs(t, "", args...)
}

func (s *site) plainAs(t *testing.T, user string, args ...string) map[string]string {
	t.Helper()
	var out bytes.Buffer
	p, err := s.c.StartTask(t.Context(), client.Task{Guest: s.guest, User: user, Args: append([]string{"/tools/plain"}, args...), Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("plain %q: %v", args, err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("plain %q: %v\n%s", args, err, out.String())
	}
	lines := map[string]string{}
	for sc := bufio.NewScanner(&out); sc.Scan(); {
		what, how, ok := strings.Cut(sc.Text(), ": ")
		if ok {
			lines[what] = how
		}
	}
	return lines
}

// carrel runs the command line as a person does.
func (s *site) carrel(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "carrel"), args...)
	cmd.Env, cmd.Dir = append(append(os.Environ(), "CARREL_HOME="+s.home), s.env...), s.tools
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("carrel %q: %v", args, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// change adds and removes rules of the guest.
func (s *site) change(t *testing.T, add, remove []*api.EgressRule) *api.ChangeEgressResponse {
	t.Helper()
	r, err := s.out.Change(t.Context(), connect.NewRequest(&api.ChangeEgressRequest{Guest: s.guest, Add: add, Remove: remove}))
	if err != nil {
		t.Fatal(err)
	}
	return r.Msg
}

// allowed has rules hold for as long as f runs: the control of what is refused
// without them.
func (s *site) allowed(t *testing.T, f func(), rules ...*api.EgressRule) {
	t.Helper()
	for _, r := range rules {
		r.Action = api.EgressAction_EGRESS_ACTION_ALLOW
	}
	s.change(t, rules, nil)
	defer s.change(t, nil, rules)
	f()
}

// events are the guest's verdicts since the start.
func (s *site) events(t *testing.T) (all []*api.EgressEvent) {
	t.Helper()
	st, err := s.out.Watch(t.Context(), connect.NewRequest(&api.WatchEgressRequest{Guest: s.guest}))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for st.Receive() {
		all = append(all, st.Msg())
	}
	if err := st.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// denied says whether a connection or request to host:port was refused since
// the event with a sequence number, and shows what was seen where it was not. The
// guest may hear of its refusal before the record does.
func (s *site) denied(t *testing.T, since uint64, host string, port uint32) *api.EgressEvent {
	t.Helper()
	var seen []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		seen = nil
		for _, e := range s.events(t) {
			if e.Sequence <= since {
				continue
			}
			if e.Host == host && e.Port == port && e.Verdict != nil && e.Verdict.Action != api.EgressAction_EGRESS_ACTION_ALLOW {
				return e
			}
			seen = append(seen, protojson.Format(e))
		}
	}
	t.Errorf("no refusal of %s:%d is on record:\n%s", host, port, strings.Join(seen, "\n"))
	return nil
}

// last is the sequence number of the newest event.
func (s *site) last(t *testing.T) uint64 {
	t.Helper()
	es := s.events(t)
	if len(es) == 0 {
		return 0
	}
	return es[len(es)-1].Sequence
}

// show logs the refusals after a sequence number, for whoever looks for a fault.
func (s *site) show(t *testing.T, since uint64) {
	t.Helper()
	for _, e := range s.events(t) {
		if e.Sequence > since && (e.Verdict == nil || e.Verdict.Action != api.EgressAction_EGRESS_ACTION_ALLOW) {
			t.Logf("%v %s:%d %s %s: %s", e.Kind, e.Host, e.Port, e.Method, e.Path, e.Verdict.GetReason())
		}
	}
}

// quiet asserts that nothing left the host but what went to the name server and
// to the hosts that are named, and that nobody reached the host itself.
func (s *site) quiet(t *testing.T, hosts ...string) {
	t.Helper()
	var known []string
	for _, h := range hosts {
		known = append(known, s.net.Host(h).Addrs...)
	}
	if f := s.net.Tap.Beyond(known...); len(f) > 0 {
		t.Errorf("packets left the host: %v", f)
	}
	if got := s.net.Canary.Connections(); len(got) > 0 {
		t.Errorf("the host's own services were reached: %q", got)
	}
	for _, h := range []string{egresstest.Attacker, egresstest.MetadataHost, egresstest.Inner} {
		if n := s.net.Host(h).Connections(); n > 0 && !slices.Contains(hosts, h) {
			t.Errorf("%s was reached %d times", h, n)
		}
	}
}

// edge is the process id of the guest's egress process.
func (s *site) edge(t *testing.T, name string) int {
	t.Helper()
	return s.process(t, name, "egress")
}

// keeper is the process id of the guest's keeper.
func (s *site) keeper(t *testing.T) int {
	t.Helper()
	g, err := s.c.Guest(t.Context(), s.guest)
	if err != nil {
		t.Fatal(err)
	}
	return int(g.KeeperPid)
}

// process finds the process of ours that has a verb and belongs to a guest, by
// where it keeps its log.
func (s *site) process(t *testing.T, name, verb string) int {
	t.Helper()
	for _, l := range s.processes() {
		var pid int
		fmt.Sscan(l, &pid)
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		log, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid))
		if args := strings.Split(string(cmd), "\x00"); len(args) > 1 && args[1] == verb && strings.Contains(log, "/"+name+"/") {
			return pid
		}
	}
	t.Fatalf("guest %s has no process %s among %q", name, verb, s.processes())
	return 0
}

// needles writes what must not be in the guest for plain's scan, masked, so that
// the list itself is not found.
func (s *site) needles(t *testing.T, file string, secrets ...string) {
	t.Helper()
	var b strings.Builder
	for _, x := range secrets {
		for _, form := range egresstest.Forms(x) {
			masked := []byte(form)
			for i := range masked {
				masked[i] ^= 0x5a
			}
			fmt.Fprintln(&b, hex.EncodeToString(masked))
		}
	}
	write(t, filepath.Join(s.tools, file), b.String())
}

// get asks a server of the world from the host, as anybody there can: the
// control of what a guest may not do.
func (s *site) get(t *testing.T, url string) string {
	t.Helper()
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(r.Body)
	return b.String()
}
