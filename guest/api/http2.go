package api

import "net/http"

// ClientHTTP2 is how clients of the daemon and of keepers are set. A task's output
// comes in frames of the size of its messages, not of 16 KiB: each is handed between
// three goroutines of the server, and written and read by itself. Of a stream that
// nobody reads no more than a mebibyte is held.
func ClientHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxReadFrameSize: 256 << 10, MaxReceiveBufferPerStream: 1 << 20}
}
