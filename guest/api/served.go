package api

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// served maps each method, "/carrel.v1.TaskService/Start", to the sockets that
// serve it: what the schema says (the option served_on), and nothing else.
var served = sync.OnceValue(func() map[string][]Socket {
	all := map[string][]Socket{}
	services := File_carrel_v1_carrel_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			on, _ := proto.GetExtension(m.Options(), E_ServedOn).([]Socket)
			all["/"+string(services.Get(i).FullName())+"/"+string(m.Name())] = on
		}
	}
	return all
})

// Methods returns the methods that a kind of socket serves, sorted, in the form
// of their paths: "/carrel.v1.TaskService/Start".
func Methods(s Socket) (list []string) {
	for m, on := range served() {
		if slices.Contains(on, s) {
			list = append(list, m)
		}
	}
	slices.Sort(list)
	return list
}

// Served lets through what the schema says is served on a kind of socket, and
// what no web page can have sent. All else is refused before anything of it is
// looked at, whoever registered a handler for it.
func Served(s Socket, h http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := fromBrowser(r); why != "" {
			http.Error(w, why, http.StatusForbidden)
			return
		}
		if !slices.Contains(served()[r.URL.Path], s) {
			err := NewError(connect.CodeUnimplemented, "no_such_method", "there is no method "+clipped(r.URL.Path)+" here", "docs/api.md lists them; a program and its daemon may be of different versions")
			if !refuse.IsSupported(r) || r.Method != http.MethodPost {
				http.Error(w, err.Message(), http.StatusNotFound)
				return
			}
			refuse.Write(w, r, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// hosts are the names by which our own clients, curl and those of other
// languages call a socket that has none.
var hosts = []string{"carrel", "localhost", "keeper", "edge"}

// fromBrowser says what shows that a request may be a web page's, or nothing. A
// page reaches no unix socket by itself, but programs that pass ports on to
// sockets are common. A browser always sets Origin or Sec-Fetch-Site on what a
// page sends elsewhere; and a page that has its own name lead here (DNS
// rebinding) sends that name as the host.
func fromBrowser(r *http.Request) string {
	switch {
	case len(r.Header["Origin"]) > 0 || len(r.Header["Sec-Fetch-Site"]) > 0:
		return "this interface is not for web pages"
	case !slices.Contains(hosts, strings.TrimSuffix(strings.ToLower(r.Host), ":80")): // Node's HTTP/2 says the port always
		return "the host must be carrel or localhost, without a port: this interface has no other name"
	}
	return ""
}

func clipped(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
