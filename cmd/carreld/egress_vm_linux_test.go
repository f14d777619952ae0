package main

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/egress/egresstest"
)

// What a guest reaches and what it does not, shown from outside: by what the
// servers of a small internet saw, by the packets on the one cable, and by a
// canary on the host's own addresses. The same cases run in a real machine and
// behind the process wall; one guest serves those that leave it whole.

// egressPolicy is the user's policy file. Origin is passed through, Second is
// looked into.
const egressPolicy = `version: 1
egress:
  presets: [packages]
  rules:
    - allow: origin.example.com
      ports: [443, 80, 8080]
    - allow: second.example.com
      ports: [443, 80]
      inspect: true
    - allow: echo.example.com
      inspect: true
    - allow: redirect.example.com
      inspect: true
    - allow: cdn.example.com
    - allow: slow.example.com
    - allow: v6only.example.com
    - allow: expired.example.com
    - allow: foreign.example.com
      inspect: true
    - allow: wrong.example.com
      inspect: true
    - allow: rebind.example.com
      ports: [80, 7777]
    - allow: github.com
      methods: [GET, POST]
      paths: ["/octo/public/**", "/octo/public.git/**"]
`

// boxEgress is what the guest of the cases asks for beside the policy file.
var boxEgress = &api.EgressSpec{Secrets: []string{"anthropic", "github"}}

// egressCase is one case. It finds the guest working and leaves it so.
type egressCase struct {
	name string
	f    func(*testing.T, *site)
}

// egressCases run in order: those at the end kill what they find.
var egressCases = []egressCase{
	{"Works", testEgressWorks},
	{"Tools", testEgressTools},
	{"Registries", testEgressRegistries},
	{"QUIC", testEgressQUIC},
	{"Musl", testEgressMusl},
	{"JVM", testEgressJVM},
	{"Refusals", testEgressRefusals},
	{"Names", testEgressNames},
	{"AbsoluteForm", testEgressAbsoluteForm},
	{"Fronting", testEgressFronting},
	{"Certificates", testEgressCertificates},
	{"Literals", testEgressLiterals},
	{"Rebinding", testEgressRebinding},
	{"MagicAddresses", testEgressMagicAddresses},
	{"ControlAPI", testEgressControlAPI},
	{"OnlyTCP", testEgressOnlyTCP},
	{"DNSTunnel", testEgressDNSTunnel},
	{"NoProxyNeeded", testEgressNoProxyNeeded},
	{"FilesAPI", testEgressFilesAPI},
	{"GitToken", testEgressGitToken},
	{"Placeholder", testEgressPlaceholder},
	{"CAKey", testEgressCAKey},
	{"SecretAbsent", testEgressSecretAbsent},
	{"HostileNames", testEgressHostileNames},
	{"LiveRules", testEgressLiveRules},
	{"Ask", testEgressAsk},
	{"Port", testEgressPort},
	{"SecondPath", testEgressSecondPath},
	{"CrossGuest", testEgressCrossGuest},
	{"Flood", testEgressFlood},
	{"NetworkChanges", testEgressNetworkChanges},
	{"DaemonKilled", testEgressDaemonKilled},
	{"StopStart", testEgressStopStart},
	{"AgentDies", testEgressAgentDies},
	{"EgressKilled", testEgressKilled},
}

// notInMachine are the cases that run in a real machine with CARREL_SCALE=full
// alone, for the time that they take under software emulation: all of them are
// six to seven minutes on an idle machine, the others three to four. Behind the
// process wall they run each time.
var notInMachine = []string{"Rebinding", "Placeholder", "SecretAbsent", "Flood", "NetworkChanges"}

// onlyFull are the cases that run with CARREL_SCALE=full alone behind every
// wall: they need what scripts/setup does not install (a JDK, 300 MB).
var onlyFull = []string{"JVM"}

func runEgressCases(t *testing.T, s *site) {
	for _, c := range egressCases {
		if os.Getenv("CARREL_SCALE") != "full" && (slices.Contains(onlyFull, c.name) || s.boundary == "vm" && slices.Contains(notInMachine, c.name)) {
			continue
		}
		ok := t.Run(c.name, func(t *testing.T) {
			s.net.Reset()
			began, first := time.Now(), s.last(t)
			c.f(t, s)
			t.Logf("%v", time.Since(began).Round(time.Millisecond))
			if t.Failed() {
				s.show(t, first)
			}
		})
		if !ok && t.Context().Err() != nil {
			return
		}
	}
}

// TestEgressVM runs the cases in a real machine.
func TestEgressVM(t *testing.T) {
	if testing.Short() {
		t.Skip("the third ring needs a built image and real machines: make test runs it")
	}
	buildHTTP3(t)
	if !egresstest.Inside(t) {
		return
	}
	s := newSite(t, "vm", egressPolicy)
	s.box(t, s.guest, boxEgress)
	runEgressCases(t, s)
}

// TestEgressProcess runs them behind the process wall.
func TestEgressProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("the process wall needs a built image: make test runs it")
	}
	buildHTTP3(t)
	if !egresstest.Inside(t) {
		return
	}
	s := newSite(t, "process", egressPolicy)
	s.box(t, s.guest, boxEgress)
	runEgressCases(t, s)
}
