package policy

import (
	"testing"
	"time"
)

func TestIdleOfAPolicyFile(t *testing.T) {
	f, problems := ParseFile(read(t, "policy/full.yaml"), "policy.yaml")
	if f == nil {
		t.Fatal(Problems("policy.yaml", problems))
	}
	want := Idle{Pause: 5 * time.Minute, Stop: 90 * time.Minute}
	if f.Idle != want {
		t.Errorf("got  %+v\nwant %+v", f.Idle, want)
	}
	if got := f.Apply(Default("/nonexistent")).Idle; got != want {
		t.Errorf("the rules say %+v", got)
	}
	for _, in := range []string{"", "idle:\n", "idle: {}\n", "idle: {pause: 0, stop: 0}\n"} { // without a word: never
		f, problems := ParseFile([]byte("version: 1\n"+in), "policy.yaml")
		if f == nil || f.Idle != (Idle{}) {
			t.Errorf("%q: %+v, %v", in, f, problems)
		}
	}
	for in, want := range map[string]Idle{"{pause: 1s}": {Pause: time.Second}, "{stop: 720h}": {Stop: maxIdle}} {
		f, problems := ParseFile([]byte("version: 1\nidle: "+in+"\n"), "policy.yaml")
		if f == nil || f.Idle != want {
			t.Errorf("%s: %+v, %v", in, f, problems)
		}
	}
	for _, in := range []string{"5m", "{pause: 5}", "{pause: -5m}", "{pause: 500ms}", "{pause: 1s1ms}", "{pause: 721h}", "{pause: soon}", "{stop: [1h]}", "{pause: 1h, stop: 1h}", "{pause: 1h, stop: 5m}", "{wait: 5m}", "{pause: 1m, pause: 2m}"} {
		if f, _ := ParseFile([]byte("version: 1\nidle: "+in+"\n"), "policy.yaml"); f != nil {
			t.Errorf("the parser takes %s: %+v", in, f.Idle)
		}
	}
	// A repository has no say in it.
	if f, _ := ParseRequest([]byte("version: 1\nidle: {pause: 5m}\n"), RequestName); f != nil {
		t.Error("a repository's request may speak of idle guests")
	}
}
