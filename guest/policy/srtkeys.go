package policy

// srtKey is what is known of one key of srt's settings.
type srtKey struct {
	// mapping and text are its fate, where its value does not matter; empty: the
	// entries are reported one by one.
	mapping Mapping
	text    string
	// inside: it is an object, or a list of objects, with keys of its own; plain:
	// strings may stand among those.
	inside, plain bool
	// refuse: settings with it are refused.
	refuse string
}

// srtKeys are the keys of srt's schema (src/sandbox/sandbox-config.ts of
// anthropics/sandbox-runtime, 2026) and those that its documents name beside it.
var srtKeys = map[string]srtKey{
	"network":                          {inside: true},
	"network.allowedDomains":           {},
	"network.deniedDomains":            {},
	"network.deniedDomainReasons":      {mapping: Exact, text: "the reasons stand as comments beside the rules"},
	"network.strictAllowlist":          {mapping: Exact, text: "what no rule names is denied, and nothing asks"},
	"network.allowAllDomains":          {},
	"network.allowUnixSockets":         {mapping: NoMeaning, text: "a guest has sockets of its own and sees none of the host"},
	"network.allowAllUnixSockets":      {mapping: NoMeaning, text: "a guest has sockets of its own and sees none of the host"},
	"network.allowLocalBinding":        {mapping: NoMeaning, text: "a guest has a loopback of its own; a port is opened to the host with carrel port"},
	"network.allowMachLookup":          {mapping: NoMeaning, text: "there are no Mach services in a Linux guest"},
	"network.httpProxyDualStack":       {mapping: NoMeaning, text: "there is no proxy on the host's loopback"},
	"network.httpProxyPort":            {mapping: Stricter, text: "Carrel decides itself; what that proxy would allow is not known, so no domain is imported"},
	"network.socksProxyPort":           {mapping: Stricter, text: "Carrel decides itself; what that proxy would allow is not known, so no domain is imported"},
	"network.mitmProxy":                {mapping: Stricter, text: "what goes through another proxy in srt is denied", inside: true},
	"network.mitmProxy.socketPath":     {mapping: NoMeaning, text: "that proxy is not used"},
	"network.mitmProxy.domains":        {},
	"network.filterRequest":            {refuse: "it is a function and cannot be in a file (srt refuses it too)"},
	"network.tlsTerminate":             {mapping: NoMeaning, text: "TLS is terminated where a rule needs it", inside: true},
	"network.tlsTerminate.caCertPath":  {mapping: NoMeaning, text: "each guest has a CA of its own"},
	"network.tlsTerminate.caKeyPath":   {mapping: NoMeaning, text: "each guest has a CA of its own; its key is in no file"},
	"network.tlsTerminate.maxTunnels":  {mapping: NoMeaning, text: "Carrel has its own bounds"},
	"network.parentProxy":              {inside: true},
	"network.parentProxy.http":         {mapping: Exact, text: "egress.upstream.http_proxy, and https_proxy if there is no other"},
	"network.parentProxy.https":        {mapping: Exact, text: "egress.upstream.https_proxy"},
	"network.parentProxy.noProxy":      {mapping: Exact, text: "egress.upstream.no_proxy"},
	"network.deniedResolvedAddresses":  {},
	"network.allowPlaintextHeaderSet":  {mapping: Stricter, text: "Carrel adds nothing to requests in clear text"},
	"network.stripResponseHeaders":     {mapping: NoMeaning, text: "headers of an answer are passed on: they come from a host that was allowed"},
	"network.refuseOpaqueTunnels":      {mapping: Exact, text: "if it is true, TLS is terminated for each imported domain"},
	"network.ambiguousRequestTarget":   {mapping: NoMeaning, text: "it belongs to filterRequest, which no file can hold; Carrel judges a path as the server will read it"},
	"network.requireHostMatch":         {mapping: Stricter, text: "always so; if it is true, TLS is terminated for each imported domain to see it"},
	"filesystem":                       {inside: true},
	"filesystem.disabled":              {mapping: Stricter, text: "a guest sees the shared folders only, always"},
	"filesystem.denyRead":              {mapping: Stricter, text: "a guest sees the shared folders only; names in them are hidden by shares.hide in policy.yaml or --hide", inside: true, plain: true},
	"filesystem.allowRead":             {mapping: Stricter, text: "share what is needed: -v PATH:ro", inside: true, plain: true},
	"filesystem.allowWrite":            {mapping: Stricter, text: "share what is needed: -v PATH:rw; what programs of the host obey (.git/hooks, .mcp.json, ...) is never written there, as with srt", inside: true, plain: true},
	"filesystem.denyWrite":             {mapping: Stricter, text: "nothing is writable unless it is shared so; names in such a folder are protected by shares.protect in policy.yaml or --protect", inside: true, plain: true},
	"filesystem.allowGitConfig":        {mapping: NoMeaning, text: "a policy file shares no folder"},
	"credentials":                      {inside: true},
	"credentials.allowPlaintextInject": {mapping: Stricter, text: "a secret is added inside verified TLS only"},
	"credentials.files":                {mapping: Stricter, text: "no file of the host is in a guest unless it is shared; a credential is kept with carrel secret set", inside: true},
	"credentials.envVars":              {mapping: Stricter, text: "no variable of the host is in a guest; a credential is kept with carrel secret set", inside: true},
	"credentials.awsPairs":             {mapping: Stricter, text: "Carrel signs no requests; the keys are not in a guest", inside: true},
	"credentials.sigv4":                {mapping: Stricter, text: "Carrel signs no requests; the keys are not in a guest", inside: true},

	"ignoreViolations":             {mapping: NoMeaning, text: "carrel egress shows every verdict"},
	"enableWeakerNestedSandbox":    {mapping: Stricter, text: "Carrel never weakens a wall by itself"},
	"allowNestedUserNamespaces":    {mapping: NoMeaning, text: "what a guest makes of its own view takes nothing from a share's rules, which hold outside it"},
	"enableWeakerNetworkIsolation": {mapping: Stricter, text: "Carrel never weakens a wall by itself"},
	"allowAppleEvents":             {mapping: NoMeaning, text: "there are no Apple Events in a Linux guest"},
	"ripgrep":                      {mapping: NoMeaning, text: "Carrel needs no ripgrep", inside: true},
	"mandatoryDenySearchDepth":     {mapping: NoMeaning, text: "Carrel protects names when they are used, not by a search"},
	"allowPty":                     {mapping: NoMeaning, text: "a guest has terminals of its own"},
	"seccomp":                      {mapping: NoMeaning, text: "how srt finds its helper", inside: true},
	"bwrapPath":                    {mapping: NoMeaning, text: "how srt finds its helper"},
	"socatPath":                    {mapping: NoMeaning, text: "how srt finds its helper"},
	"javaAgentJarPath":             {mapping: NoMeaning, text: "programs in a guest need no proxy settings"},
	"windows":                      {mapping: NoMeaning, text: "how srt works on Windows", inside: true},
	"git":                          {mapping: NoMeaning, text: "settings of git belong into the guest", inside: true},
}

// KnowsSRTKey says whether the import knows what a key of srt's settings,
// "network.allowedDomains", becomes.
func KnowsSRTKey(key string) bool {
	_, known := srtKeys[key]
	return known
}

func init() {
	for _, k := range []string{"excludeDomains", "extraCaCertPaths", "handshakeTimeoutMs"} {
		srtKeys["network.tlsTerminate."+k] = srtKey{mapping: NoMeaning, text: "TLS is passed through unless a rule needs more; the host's roots count"}
	}
	inner := func(at string, m Mapping, text string, keys ...string) {
		for _, k := range keys {
			srtKeys[at+"."+k] = srtKey{mapping: m, text: text}
		}
	}
	for _, k := range []string{"denyRead", "allowRead", "allowWrite", "denyWrite"} { // an entry may be {path, literal}
		inner("filesystem."+k, srtKeys["filesystem."+k].mapping, srtKeys["filesystem."+k].text, "path", "literal")
	}
	masks := []string{"mode", "extract", "onExtractNoMatch", "decode", "maskClaims", "injectHosts"}
	inner("credentials.files", Stricter, "the file is not in the guest at all", append(masks, "path", "maskDuplicates")...)
	inner("credentials.envVars", Stricter, "the variable is not in the guest at all", append(masks, "name")...)
	inner("credentials.awsPairs", Stricter, "the keys are not in the guest", "accessKeyIdVar", "secretAccessKeyVar", "sessionTokenVar")
	inner("credentials.sigv4", Stricter, "no request is signed", "streaming", "presigned", "sigv4a")
	inner("ripgrep", NoMeaning, "Carrel needs no ripgrep", "command", "args", "argv0")
	inner("seccomp", NoMeaning, "how srt finds its helper", "applyPath", "argv0")
	inner("windows", NoMeaning, "how srt works on Windows", "backend", "sandboxUser", "sublayerGuid", "wfpSublayerGuid", "proxyPortRange", "srtWin")
	inner("git", NoMeaning, "settings of git belong into the guest", "safeDirectories")
	srtKeys["windows.srtWin"] = srtKey{mapping: NoMeaning, text: "how srt finds its helper", inside: true}
	inner("windows.srtWin", NoMeaning, "how srt finds its helper", "path")
}
