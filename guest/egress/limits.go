package egress

import "time"

// Bounds of one guest's egress. What is read before a decision is in hello.go.
const (
	// maxConns is how many connections there are at once.
	maxConns = 1024
	// arrivals a second are taken up at once, up to arrivalBurst; more wait, and
	// are refused after arrivalWait.
	arrivals     = 500
	arrivalBurst = maxConns
	arrivalWait  = 2 * time.Second

	// maxServers is how many sockets to servers all connections have together: one
	// whose requests are judged has several. maxDials is how many more are being
	// connected, to different addresses of one name too. What was free of a
	// process's descriptors would else be for the guest to say.
	maxServers = 2048
	maxDials   = 512

	// maxOpen is the longest first frame of a stream, in bytes.
	maxOpen     = 1 << 10
	openTimeout = 10 * time.Second
	// helloTimeout is how long a client may take to say what has to be known
	// before anything is sent on.
	helloTimeout = 10 * time.Second
	// maxLongHellos is how many connections may hold more than one record of a
	// first message, at once.
	maxLongHellos = 64
	// flightTimeout is how long a server may take to answer a ClientHello.
	flightTimeout = 60 * time.Second

	// Names are resolved by at most maxLookups at once, each to at most
	// maxAddresses.
	maxLookups    = 64
	maxAddresses  = 32
	lookupTimeout = 10 * time.Second
	// dialStagger is how long one address is tried alone: RFC 8305, 5.
	dialStagger = 250 * time.Millisecond
	dialTimeout = 30 * time.Second
	// maxProxyAnswer bounds a proxy's answer to CONNECT, in bytes.
	maxProxyAnswer = 16 << 10

	// idleLimit ends a connection on which no byte went either way, halfIdleLimit
	// one of which one direction has ended.
	idleLimit     = 2 * time.Hour
	halfIdleLimit = 10 * time.Minute

	// lastWords is how long a server that takes no more may go on speaking.
	lastWords = 5 * time.Second

	// maxWaiting is how many connections and requests wait for answers at once.
	maxWaiting = 64
	askTimeout = 60 * time.Second
	// questions a second are new ones, after the first questionBurst.
	questions     = 2
	questionBurst = 2 * maxWaiting
	// noHolds is how long a no stands for the same question; maxNoes are kept.
	noHolds = 30 * time.Second
	maxNoes = 256

	// keptEvents are shown to who comes late.
	keptEvents = 1024
	// sameRefusal is how long a refusal stands for others like it.
	sameRefusal = 10 * time.Second
	maxRefusals = 256

	// A refusal waits sniffTimeout for what the client says first, and for
	// drainTimeout reads on after it, up to maxDrain bytes, so that the message is
	// not lost to a reset.
	sniffTimeout = 5 * time.Second
	drainTimeout = 2 * time.Second
	maxDrain     = 256 << 10

	maxPorts = 64
	// maxPortConns is how many connections come in through ports at once.
	maxPortConns = 256
	// acceptPause is how long a port waits after an error.
	acceptPause = 500 * time.Millisecond
)
