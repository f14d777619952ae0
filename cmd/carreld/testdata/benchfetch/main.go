// Benchfetch is the client in the guest in which make bench measures egress: it
// does what one line on its standard input asks, answers with a line, and the
// host takes the time. It knows nothing of proxies and certificates; what the
// system trusts it trusts.
//
//	benchfetch PASSED INSPECTED       two HOST:PORT of one server
//	get passed N BYTES                N connections in a row, one request of so many bytes each
//	get self N BYTES                  the same to a server of its own, over loopback: what TLS costs here
package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "benchfetch PASSED INSPECTED")
		os.Exit(2)
	}
	own := httptest.NewTLSServer(http.HandlerFunc(serve))
	defer own.Close()
	trust := own.Client().Transport.(*http.Transport).TLSClientConfig
	servers := map[string]server{"passed": {"https://" + os.Args[1], nil}, "inspected": {"https://" + os.Args[2], nil}, "self": {own.URL, trust}}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := obey(servers, lines.Text()); err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println("ok")
	}
}

// server is where to connect, and whom to trust there; nil: whom the system does.
type server struct {
	url   string
	trust *tls.Config
}

func obey(servers map[string]server, line string) error {
	var way string
	var times int
	var size int64
	if _, err := fmt.Sscanf(line, "get %s %d %d", &way, &times, &size); err != nil {
		return err
	}
	for range times {
		if err := get(servers[way], size); err != nil {
			return err
		}
	}
	return nil
}

// get makes one connection for one request over HTTP/1.1, as cmd/carreld's
// benchmark does on the host.
func get(s server, size int64) error {
	t := &http.Transport{TLSClientConfig: s.trust, DisableKeepAlives: true, DisableCompression: true}
	r, err := (&http.Client{Transport: t}).Get(fmt.Sprintf("%s/%d", s.url, size))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 64<<10))
	if err == nil && (r.StatusCode != http.StatusOK || n != size) {
		err = fmt.Errorf("status %d, %d bytes", r.StatusCode, n)
	}
	return err
}

// serve answers GET /N with N bytes, as the server on the host does.
func serve(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", r.URL.Path[1:])
	block := make([]byte, 64<<10)
	for ; n > 0 && err == nil; n -= int64(len(block)) {
		_, err = w.Write(block[:min(n, int64(len(block)))])
	}
}
