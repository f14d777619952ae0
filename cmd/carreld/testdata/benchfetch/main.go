// Benchfetch is the client in the guest in which make bench measures egress: it
// does what one line on its standard input asks, answers with a line, and the
// host takes the time. It knows nothing of proxies and certificates; what the
// system trusts it trusts.
//
//	benchfetch PASSED INSPECTED       two HOST:PORT of one server
//	get passed N BYTES                N connections in a row, one request of so many bytes each
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "benchfetch PASSED INSPECTED")
		os.Exit(2)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := obey(lines.Text()); err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println("ok")
	}
}

func obey(line string) error {
	var way string
	var times int
	var size int64
	if _, err := fmt.Sscanf(line, "get %s %d %d", &way, &times, &size); err != nil {
		return err
	}
	addr := map[string]string{"passed": os.Args[1], "inspected": os.Args[2]}[way]
	for range times {
		if err := get(fmt.Sprintf("https://%s/%d", addr, size), size); err != nil {
			return err
		}
	}
	return nil
}

// get makes one connection for one request over HTTP/1.1, as cmd/carreld's
// benchmark does on the host.
func get(url string, size int64) error {
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	r, err := (&http.Client{Transport: t}).Get(url)
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
