package policy

import (
	"strings"
	"testing"
	"time"
)

func TestTelemetry(t *testing.T) {
	f, problems := ParseFile(read(t, "policy/full.yaml"), "policy.yaml")
	if f == nil {
		t.Fatal(Problems("policy.yaml", problems))
	}
	want := &Telemetry{Endpoint: "https://otel.example.net:4318", Secret: "collector", Interval: 30 * time.Second,
		Headers: []TelemetryHeader{{Name: "X-Tenant", Value: "carrel"}, {Name: "Authorization", File: "/etc/otel/token"}}}
	if !f.Telemetry.Equal(want) || f.Telemetry.Equal(nil) || !(*Telemetry)(nil).Equal(nil) {
		t.Errorf("%+v", f.Telemetry)
	}
	// Off by default, and where it says nothing.
	for _, s := range []string{"", "version: 1\n", "version: 1\ntelemetry:\n", "version: 1\ntelemetry: {}\n"} {
		if f, problems := ParseFile([]byte(s), "policy.yaml"); f == nil || f.Telemetry != nil {
			t.Errorf("%q: %+v, %v", s, f, problems)
		}
	}
	for s, want := range map[string]string{
		"endpoint: http://otel.example.net:4318":                     "only loopback",
		"endpoint: https://u:hunter2@otel.example.net":               "does not belong",
		"endpoint: 'https://otel.example.net/?k=hunter2'":            "no query",
		"endpoint: ftp://otel.example.net":                           "is not https",
		"endpoint: otel.example.net:4318":                            "not",
		"endpoint: ''":                                               "needs an endpoint",
		"interval: 60":                                               "needs an endpoint",
		"endpoint: https://a.example, interval: 1":                   "between 10 and 3600",
		"endpoint: https://a.example, headers: {Host: x}":            "no header that can be set",
		"endpoint: https://a.example, headers: {'a b': x}":           "no header that can be set",
		"endpoint: https://a.example, headers: {a: {}}":              "names no file",
		"endpoint: https://a.example, headers: {a: {file: x}}":       "not an absolute path",
		"endpoint: https://a.example, headers: {a: \"hunter2\\nb\"}": "characters that no header has",
		"endpoint: https://a.example, headers: [a]":                  "is a mapping",
		"endpoint: https://a.example, surprise: 1":                   "unknown key",
	} {
		f, problems := ParseFile([]byte("version: 1\ntelemetry: {"+s+"}\n"), "policy.yaml")
		text := Problems("policy.yaml", problems)
		if f != nil || !strings.Contains(text, want) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %s", s, text)
		}
	}
	for _, s := range []string{"http://127.0.0.1:4318", "http://[::1]:1/x", "http://localhost:4318", "https://a.example/otlp"} {
		if err := checkEndpoint(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	// A repository cannot turn it on.
	if _, problems := ParseRequest([]byte("version: 1\ntelemetry: {endpoint: 'https://a.example'}\n"), "x"); !strings.Contains(Problems("x", problems), "unknown key") {
		t.Error(problems)
	}
}
