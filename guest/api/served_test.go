package api

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var update = flag.Bool("update", false, "write docs/api.md's tables again")

// Every method says whose it is. What a keeper serves of TaskService and
// FileService, the daemon serves too, since it only hands it on; no other
// service is on two sockets.
func TestServed(t *testing.T) {
	for m, on := range served() {
		both := strings.HasPrefix(m, "/carrel.v1.TaskService/") || strings.HasPrefix(m, "/carrel.v1.FileService/")
		want := 1
		if both {
			want = 2
		}
		if len(on) != want || slices.Contains(on, Socket_SOCKET_UNSPECIFIED) {
			t.Errorf("%s is served on %v: say in the schema, with the option served_on, on which sockets", m, on)
		}
	}
	if len(served()) < 70 {
		t.Fatalf("the schema has only %d methods", len(served()))
	}
}

// Every method of the daemon's says what it leaves behind, and each that makes
// something takes an idempotency key, so that it can be asked again.
func TestEffects(t *testing.T) {
	keyed, n := map[string]bool{}, map[Effect]int{}
	for m, d := range methods() {
		effect, _ := proto.GetExtension(d.Options(), E_Effect).(Effect)
		key := d.Input().Fields().ByName("idempotency_key")
		ours := slices.Contains(served()[m], Socket_SOCKET_DAEMON)
		switch {
		case ours && effect == Effect_EFFECT_UNSPECIFIED:
			t.Errorf("%s does not say what asking a second time does: say so in the schema, with the option effect", m)
		case ours && effect == Effect_EFFECT_MAKES && (key == nil || key.Kind() != protoreflect.StringKind):
			t.Errorf("%s makes something, and %s has no string idempotency_key", m, d.Input().Name())
		case ours && effect != Effect_EFFECT_MAKES && key != nil:
			t.Errorf("%s takes a key and makes nothing", m)
		case !ours && effect != Effect_EFFECT_UNSPECIFIED:
			t.Errorf("%s is not the daemon's, and has an effect", m)
		}
		n[effect]++
		keyed[m] = key != nil
	}
	for _, m := range []string{"GuestService/Start", "TaskService/Start", "ShareService/Add", "DiskService/CreateVolume", "EgressService/Publish", "ImageService/CreateKey", "ImageService/Export"} {
		if !keyed["/carrel.v1."+m] {
			t.Errorf("%s takes no key", m)
		}
	}
	if n[Effect_EFFECT_MAKES] < 7 || n[Effect_EFFECT_READS] < 20 {
		t.Errorf("effects: %v", n)
	}
}

// methods are those of the schema, by their paths.
func methods() map[string]protoreflect.MethodDescriptor {
	all := map[string]protoreflect.MethodDescriptor{}
	services := File_carrel_v1_carrel_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			all["/"+string(services.Get(i).FullName())+"/"+string(m.Name())] = m
		}
	}
	return all
}

// Methods of one socket are not served on another, whatever handler is there;
// nor are methods that the schema does not know.
func TestServedElsewhere(t *testing.T) {
	reached := ""
	all := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached = r.URL.Path })
	call := func(s Socket, path string, change ...func(*http.Request)) (int, string, bool) {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}"))
		r.Host = "carrel"
		r.Header.Set("Content-Type", "application/json")
		for _, f := range change {
			f(r)
		}
		w := httptest.NewRecorder()
		reached = ""
		Served(s, all).ServeHTTP(w, r)
		return w.Code, w.Body.String(), reached != ""
	}
	sockets := []Socket{Socket_SOCKET_UNSPECIFIED, Socket_SOCKET_DAEMON, Socket_SOCKET_KEEPER, Socket_SOCKET_EDGE}
	for m, on := range served() {
		for _, s := range sockets {
			code, body, ok := call(s, m)
			if want := slices.Contains(on, s); ok != want || !want && (code != http.StatusNotImplemented && code != http.StatusNotFound || !strings.Contains(body, `"unimplemented"`)) {
				t.Errorf("%s on %v: reached %v, status %d, %s", m, s, ok, code, body)
			}
		}
	}
	for _, path := range []string{"/", "/carrel.v1.GuestService/", "/carrel.v1.GuestService/Nothing", "/carrel.v1.GuestService/List/", "//carrel.v1.GuestService/List", "/carrel.v1.guestservice/list", "/x/../carrel.v1.GuestService/List"} {
		if _, _, ok := call(Socket_SOCKET_DAEMON, path); ok {
			t.Errorf("%s was served", path)
		}
	}
	// A08, A09: what a page can send. The control: the same without it.
	const list = "/carrel.v1.GuestService/List"
	for name, f := range map[string]func(*http.Request){
		"origin":          func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"null origin":     func(r *http.Request) { r.Header.Set("Origin", "null") },
		"empty origin":    func(r *http.Request) { r.Header["Origin"] = []string{""} },
		"own origin":      func(r *http.Request) { r.Header.Set("Origin", "http://localhost") },
		"fetch":           func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"same site":       func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") },
		"websocket":       func(r *http.Request) { r.Header.Set("Upgrade", "websocket"); r.Header.Set("Origin", "null") },
		"rebound":         func(r *http.Request) { r.Host = "evil.example" },
		"rebound port":    func(r *http.Request) { r.Host = "evil.example:80" },
		"looks like ours": func(r *http.Request) { r.Host = "localhost.evil.example" },
		"begins like us":  func(r *http.Request) { r.Host = "carrel.evil.example" },
		"loopback":        func(r *http.Request) { r.Host = "127.0.0.1" },
		"port":            func(r *http.Request) { r.Host = "localhost:8080" },
		"no host":         func(r *http.Request) { r.Host = "" },
		"dot":             func(r *http.Request) { r.Host = "localhost." },
	} {
		if code, _, ok := call(Socket_SOCKET_DAEMON, list, f); ok || code != http.StatusForbidden {
			t.Errorf("%s: status %d, reached %v", name, code, ok)
		}
	}
	if _, _, ok := call(Socket_SOCKET_DAEMON, list, func(r *http.Request) { r.Host = "localhost" }); !ok {
		t.Error("control: refused")
	}
}

// asked says what asking a second time does.
var asked = map[Effect]string{
	Effect_EFFECT_READS: "reads", Effect_EFFECT_CHANGES: "changes", Effect_EFFECT_PUTS: "puts the same", Effect_EFFECT_MAKES: "**key**",
}

// matrix is the table of methods and callers, from the schema.
func matrix() string {
	var b bytes.Buffer
	b.WriteString("| method | asked twice | your programs | the daemon, of a keeper | the daemon, of an egress process | another user, a guest, a keeper, a web page |\n|---|---|---|---|---|---|\n")
	mark := func(on []Socket, s Socket) string {
		if slices.Contains(on, s) {
			return "yes"
		}
		return "no"
	}
	var list []string
	for m := range served() {
		list = append(list, m)
	}
	slices.Sort(list)
	for _, m := range list {
		effect, _ := proto.GetExtension(methods()[m].Options(), E_Effect).(Effect)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | no |\n", strings.TrimPrefix(m, "/carrel.v1."), asked[effect], mark(served()[m], Socket_SOCKET_DAEMON), mark(served()[m], Socket_SOCKET_KEEPER), mark(served()[m], Socket_SOCKET_EDGE))
	}
	return b.String()
}

// codeTable is the list of the words of errors.
func codeTable() string {
	var b bytes.Buffer
	b.WriteString("| code | what it means |\n|---|---|\n")
	var list []string
	for w := range Codes {
		list = append(list, w)
	}
	slices.Sort(list)
	for _, w := range list {
		fmt.Fprintf(&b, "| `%s` | %s |\n", w, Codes[w])
	}
	return b.String()
}

// The tables of docs/api.md are those of the schema; go test ./guest/api -update
// writes them again.
func TestDocs(t *testing.T) {
	const file = "../../docs/api.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now := string(b)
	for name, table := range map[string]string{"matrix": matrix(), "codes": codeTable()} {
		begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->"
		before, rest, ok := strings.Cut(now, begin)
		_, after, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatalf("%s has no place for the table %s", file, name)
		}
		now = before + begin + table + end + after
	}
	if *update {
		if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if now != string(b) {
		t.Errorf("%s does not say what the schema does: go test ./guest/api -update, and look at the difference", file)
	}
}
