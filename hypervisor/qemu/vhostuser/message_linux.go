package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// All fields on the socket and in the queues are little endian here: the
// socket's are native, and the hosts that Carrel runs on are amd64 and arm64.
var le = binary.LittleEndian

// Requests of the front end, numbered as in vhost-user.rst.
const (
	reqGetFeatures         = 1
	reqSetFeatures         = 2
	reqSetOwner            = 3
	reqResetOwner          = 4
	reqSetMemTable         = 5
	reqSetVringNum         = 8
	reqSetVringAddr        = 9
	reqSetVringBase        = 10
	reqGetVringBase        = 11
	reqSetVringKick        = 12
	reqSetVringCall        = 13
	reqSetVringErr         = 14
	reqGetProtocolFeatures = 15
	reqSetProtocolFeatures = 16
	reqGetQueueNum         = 17
	reqSetVringEnable      = 18
	reqGetConfig           = 24
	reqSetConfig           = 25
	reqResetDevice         = 34
)

var requestNames = map[uint32]string{
	reqGetFeatures: "GET_FEATURES", reqSetFeatures: "SET_FEATURES", reqSetOwner: "SET_OWNER", reqResetOwner: "RESET_OWNER",
	reqSetMemTable: "SET_MEM_TABLE", reqSetVringNum: "SET_VRING_NUM", reqSetVringAddr: "SET_VRING_ADDR",
	reqSetVringBase: "SET_VRING_BASE", reqGetVringBase: "GET_VRING_BASE", reqSetVringKick: "SET_VRING_KICK",
	reqSetVringCall: "SET_VRING_CALL", reqSetVringErr: "SET_VRING_ERR", reqGetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	reqSetProtocolFeatures: "SET_PROTOCOL_FEATURES", reqGetQueueNum: "GET_QUEUE_NUM", reqSetVringEnable: "SET_VRING_ENABLE",
	reqGetConfig: "GET_CONFIG", reqSetConfig: "SET_CONFIG", reqResetDevice: "RESET_DEVICE",
}

func requestName(r uint32) string {
	if n := requestNames[r]; n != "" {
		return n
	}
	return fmt.Sprintf("request %d", r)
}

// minPayload is the least payload, in bytes, of each request that has one.
var minPayload = map[uint32]int{
	reqSetFeatures: 8, reqSetProtocolFeatures: 8, reqSetMemTable: 8,
	reqSetVringNum: 8, reqSetVringAddr: 40, reqSetVringBase: 8, reqGetVringBase: 8,
	reqSetVringKick: 8, reqSetVringCall: 8, reqSetVringErr: 8, reqSetVringEnable: 8,
	reqGetConfig: configHeader,
}

const (
	headerSize = 12
	// maxPayload is above the largest message there is: GET_CONFIG with 256
	// bytes of configuration, SET_MEM_TABLE with 8 regions (264 bytes).
	maxPayload = 512
	// maxRegions is VHOST_MEMORY_BASELINE_NREGIONS, and so the most file
	// descriptors that a message carries.
	maxRegions   = 8
	configHeader = 12  // offset, size, flags of GET_CONFIG
	maxConfig    = 256 // VHOST_USER_MAX_CONFIG_SIZE

	flagVersion     = 1
	flagVersionMask = 3
	flagReply       = 1 << 2
)

// message is one request as it arrived. Its descriptors belong to whoever
// holds the message: take hands one on, close drops the rest.
type message struct {
	request uint32
	payload []byte
	fds     []int
}

// take returns the only descriptor of the message.
func (m *message) take() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%d file descriptors came along, want 1", len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	return fd, nil
}

func (m *message) close() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// parseHeader checks the 12 bytes before each payload.
func parseHeader(h []byte) (request, size uint32, err error) {
	request, flags, size := le.Uint32(h), le.Uint32(h[4:]), le.Uint32(h[8:])
	switch {
	case flags&flagVersionMask != flagVersion || flags&flagReply != 0:
		return 0, 0, fmt.Errorf("%s: flags %#x are not those of a vhost-user request", requestName(request), flags)
	case size > maxPayload:
		return 0, 0, fmt.Errorf("%s: payload of %d bytes, at most %d are possible", requestName(request), size, maxPayload)
	}
	return request, size, nil
}

// readMessage reads one request; io.EOF says that the front end closed the
// socket between two of them. buf holds at least maxPayload bytes and backs
// the payload until the next call.
func readMessage(c *net.UnixConn, buf []byte) (*message, error) {
	var h [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxRegions))
	n, oobn, flags, _, err := c.ReadMsgUnix(h[:], oob)
	m := &message{fds: receivedFDs(oob[:oobn])}
	fail := func(err error) (*message, error) {
		m.close()
		return nil, err
	}
	switch {
	case err != nil:
		return fail(err)
	case n == 0:
		return fail(io.EOF)
	case flags&unix.MSG_CTRUNC != 0:
		return fail(fmt.Errorf("a message carried more than %d file descriptors", maxRegions))
	}
	if _, err := io.ReadFull(c, h[n:]); err != nil {
		return fail(unexpected(err))
	}
	req, size, err := parseHeader(h[:])
	if err != nil {
		return fail(err)
	}
	m.request, m.payload = req, buf[:size]
	if _, err := io.ReadFull(c, m.payload); err != nil {
		return fail(fmt.Errorf("%s: %w", requestName(req), unexpected(err)))
	}
	if len(m.payload) < minPayload[req] {
		return fail(fmt.Errorf("%s: payload of %d bytes, want %d", requestName(req), size, minPayload[req]))
	}
	return m, nil
}

// unexpected keeps an end in mid-message from being taken for an orderly one.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func writeReply(c *net.UnixConn, req uint32, payload []byte) error {
	b := make([]byte, headerSize, headerSize+len(payload))
	le.PutUint32(b, req)
	le.PutUint32(b[4:], flagVersion|flagReply)
	le.PutUint32(b[8:], uint32(len(payload)))
	_, err := c.Write(append(b, payload...))
	return err
}

// receivedFDs returns every descriptor in oob, so that none can leak; Go asks
// the kernel to set close-on-exec on them.
func receivedFDs(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func u64(v uint64) []byte { return le.AppendUint64(nil, v) }
