// Http3 is a client that prefers HTTP/3 and falls back, as browsers do, with a
// QUIC of its own. It prints a line for each URL: what became of QUIC and how
// long that took, and what came by TCP after it.
//
//	http3 URL...    trusting any certificate
//	http3 self      the same with a server of its own on loopback: the control
//
// It is a module of its own, so that no program of ours has anything to do with
// QUIC.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/quic-go/quic-go/http3"
)

func main() {
	for _, a := range os.Args[1:] {
		if a == "self" {
			self()
			continue
		}
		fmt.Printf("%s: %s; then %s\n", a, fetch(quic(), a), fetch(&http.Transport{TLSClientConfig: anyServer(), ForceAttemptHTTP2: true}, a))
	}
}

func anyServer() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// quic waits as long for a server as the library does by itself.
func quic() http.RoundTripper { return &http3.Transport{TLSClientConfig: anyServer()} }

func fetch(by http.RoundTripper, url string) string {
	began := time.Now()
	took := func() int64 { return time.Since(began).Milliseconds() }
	r, err := (&http.Client{Transport: by, Timeout: 2 * time.Minute}).Get(url)
	if err != nil {
		return fmt.Sprintf("error after %d ms: %v", took(), err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 300))
	return fmt.Sprintf("%s %s %q %v after %d ms", r.Proto, r.Status, b, err, took())
}

// self serves HTTP/3 on loopback and asks for a page.
func self() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s := &http3.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "by QUIC") }),
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}),
	}
	go s.Serve(conn)
	fmt.Println("self:", fetch(quic(), "https://"+conn.LocalAddr().String()+"/"))
}
