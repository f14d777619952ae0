package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/api"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// jsonCall makes a call in plain JSON; word is that of its error, or empty.
func (w *world) jsonCall(method string, req, answer proto.Message) (word string) {
	w.t.Helper()
	b, err := protojson.Marshal(req)
	if err != nil {
		w.t.Fatal(err)
	}
	status, body := send(w.t, filepath.Join(w.home, "run", "d.sock"), http.MethodPost, "/carrel.v1."+method, "application/json", string(b))
	if status == 200 {
		if err := protojson.Unmarshal([]byte(body), answer); err != nil {
			w.t.Fatal(err)
		}
		return ""
	}
	var e struct {
		Details []struct{ Debug struct{ Code, Cause string } }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || len(e.Details) == 0 || api.Codes[e.Details[0].Debug.Code] == "" || e.Details[0].Debug.Cause == "" {
		w.t.Fatalf("%s: status %d, an error without a word of the list: %s", method, status, body)
	}
	return e.Details[0].Debug.Code
}

func (w *world) must(method string, req, answer proto.Message) {
	w.t.Helper()
	if word := w.jsonCall(method, req, answer); word != "" {
		w.t.Fatalf("%s: %s", method, word)
	}
}

func (w *world) refuses(want, method string, req proto.Message) {
	w.t.Helper()
	var any api.ErrorDetail
	if word := w.jsonCall(method, req, &any); word != want {
		w.t.Errorf("%s %v: %q, not %q", method, req, word, want)
	}
}

// Single calls do what a stream does: input once, whatever is sent again; signals;
// an end that is said; output in parts, also when the guest is gone.
func TestTaskCalls(t *testing.T) {
	w := newRing2(t)
	w.start()
	w.guest(w.client(), "box")
	start := func(stdin bool, argv ...string) string {
		out := new(api.StartTaskResponse)
		w.must("TaskService/Start", &api.StartTaskRequest{Guest: "box", Spec: &api.TaskSpec{Argv: argv, Stdin: stdin}}, out)
		return out.Task.Id
	}
	cat := start(true, "cat")
	write := func(offset int64, data string) int64 {
		out := new(api.WriteTaskResponse)
		w.must("TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: cat, Data: []byte(data), Offset: &offset}, out)
		return out.Written
	}
	if n := write(0, "hello "); n != 6 {
		t.Error(n)
	}
	if n := write(0, "hello "); n != 6 { // the answer was lost
		t.Error(n)
	}
	if n := write(2, "llo world"); n != 11 {
		t.Error(n)
	}
	w.refuses("bad_offset", "TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: cat, Data: []byte("x"), Offset: proto.Int64(99)})
	w.refuses("too_large", "TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: cat, Data: make([]byte, 256<<10+1)})
	// What is not there yet is waited for, and no longer than that.
	read := new(api.ReadTaskResponse)
	got := ""
	for next := int64(0); len(got) < 11; next = read.Next {
		w.must("TaskService/Read", &api.ReadTaskRequest{Guest: "box", Task: cat, Offset: next}, read)
		for _, p := range read.Pieces {
			got += string(p.GetStdout())
		}
	}
	if got != "hello world" {
		t.Errorf("%q", got)
	}
	w.must("TaskService/Read", &api.ReadTaskRequest{Guest: "box", Task: cat, Offset: read.Next, TimeoutNanos: -1}, read)
	if len(read.Pieces) != 0 || read.End != nil {
		t.Error(read)
	}
	waited := new(api.WaitTaskResponse)
	w.must("TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: cat, TimeoutNanos: -1}, waited)
	if waited.Task.State != api.TaskState_TASK_STATE_RUNNING {
		t.Error(waited.Task.State)
	}
	w.must("TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: cat, Close: true}, new(api.WriteTaskResponse))
	w.must("TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: cat}, waited)
	if waited.Task.GetEnding().GetStatus() != 0 || waited.Task.State != api.TaskState_TASK_STATE_EXITED {
		t.Error(waited.Task)
	}
	w.refuses("task_ended", "TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: cat, Data: []byte("x")})
	w.refuses("task_ended", "TaskService/Signal", &api.SignalTaskRequest{Guest: "box", Task: cat, Signal: 15})

	deaf := start(false, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done")
	w.must("TaskService/Read", &api.ReadTaskRequest{Guest: "box", Task: deaf}, read)
	w.refuses("no_input", "TaskService/Write", &api.WriteTaskRequest{Guest: "box", Task: deaf, Data: []byte("x")})
	w.refuses("bad_number", "TaskService/Signal", &api.SignalTaskRequest{Guest: "box", Task: deaf, Signal: 65})
	w.refuses("bad_number", "TaskService/Resize", &api.ResizeTaskRequest{Guest: "box", Task: deaf, Rows: 1 << 20, Cols: 80})
	w.refuses("bad_request", "TaskService/Wait", &api.WaitTaskRequest{Guest: "box"})
	w.refuses("not_found", "TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: "../" + deaf})
	w.refuses("not_found", "TaskService/Wait", &api.WaitTaskRequest{Guest: "nobody", Task: deaf})
	w.refuses("bad_name", "TaskService/Wait", &api.WaitTaskRequest{Guest: "../box", Task: deaf})
	cancelled := new(api.CancelTaskResponse)
	w.must("TaskService/Cancel", &api.CancelTaskRequest{Guest: "box", Task: deaf, GraceNanos: 1}, cancelled)
	if e := cancelled.Task.GetEnding(); e.GetSignal() != 9 || cancelled.Task.State != api.TaskState_TASK_STATE_EXITED {
		t.Error(cancelled.Task)
	}
	again := new(api.CancelTaskResponse)
	w.must("TaskService/Cancel", &api.CancelTaskRequest{Guest: "box", Task: deaf}, again)
	if !proto.Equal(again.Task, cancelled.Task) {
		t.Error("an ended task has another end:", again.Task)
	}

	// The guest ends: what is known stays known, and the daemon may start anew.
	w.must("GuestService/Stop", &api.StopGuestRequest{Name: "box"}, new(api.StopGuestResponse))
	for range 2 {
		w.must("TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: cat}, waited)
		w.must("TaskService/Read", &api.ReadTaskRequest{Guest: "box", Task: cat, Offset: 0, MaxBytes: 1}, read)
		if waited.Task.GetEnding() == nil || len(read.Pieces) != 1 || !strings.HasPrefix("hello world", string(read.Pieces[0].GetStdout())) {
			t.Error(waited, read)
		}
		w.refuses("not_running", "TaskService/Signal", &api.SignalTaskRequest{Guest: "box", Task: cat, Signal: 15})
		w.kill()
		w.start()
	}
}

// A look at files says what is there, and reads parts of files, as the task's
// user would see them.
func TestFileCalls(t *testing.T) {
	w := newRing2(t)
	w.start()
	w.guest(w.client(), "box")
	dir := filepath.Join(w.work, "in")
	out := new(api.StartTaskResponse)
	script := fmt.Sprintf(`mkdir %[1]s && cd %[1]s && printf 0123456789 > file && chmod 640 file && mkdir sub && ln -s file link && mkfifo pipe && printf x > "$(printf 'bad\377name')" && printf x > 'odd
name'`, dir)
	w.must("TaskService/Start", &api.StartTaskRequest{Guest: "box", Spec: &api.TaskSpec{Argv: []string{"sh", "-c", script}}}, out)
	waited := new(api.WaitTaskResponse)
	w.must("TaskService/Wait", &api.WaitTaskRequest{Guest: "box", Task: out.Task.Id}, waited)
	if waited.Task.GetEnding().GetStatus() != 0 {
		t.Fatal(waited)
	}
	list := new(api.ListFilesResponse)
	w.must("FileService/List", &api.ListFilesRequest{Guest: "box", Path: dir}, list)
	got := map[string]*api.FileInfo{}
	for _, e := range list.Entries {
		got[e.Name] = e
	}
	if list.Self.Name != "in" || list.Self.Type != api.FileType_FILE_TYPE_DIRECTORY || list.LeftOut != 1 || len(got) != 5 {
		t.Error(list)
	}
	if f := got["file"]; f.GetSize() != 10 || f.GetMode() != 0o640 || f.GetType() != api.FileType_FILE_TYPE_REGULAR || f.GetModified() == nil {
		t.Error(f)
	}
	if l := got["link"]; l.GetType() != api.FileType_FILE_TYPE_SYMLINK || l.GetTarget() != "file" {
		t.Error(l)
	}
	if p := got["pipe"]; p == nil || p.Type != api.FileType_FILE_TYPE_UNSPECIFIED {
		t.Error(p)
	}
	list = new(api.ListFilesResponse)
	w.must("FileService/List", &api.ListFilesRequest{Guest: "box", Path: dir, SelfOnly: true}, list)
	if len(list.Entries) != 0 || list.Self == nil {
		t.Error(list)
	}
	for _, path := range []string{"/", dir + "/file", dir + "/link"} {
		list = new(api.ListFilesResponse)
		if w.must("FileService/List", &api.ListFilesRequest{Guest: "box", Path: path}, list); list.Self == nil || path != "/" && len(list.Entries) > 0 {
			t.Error(path, list)
		}
	}
	for _, r := range []struct {
		path         string
		offset, most int64
		want         string
	}{{"file", 0, 0, "0123456789"}, {"file", 3, 4, "3456"}, {"file", 10, 5, ""}, {"file", 1 << 60, 5, ""}, {"link", 8, 1 << 40, "89"}} {
		part := new(api.ReadFileResponse)
		w.must("FileService/Read", &api.ReadFileRequest{Guest: "box", Path: filepath.Join(dir, r.path), Offset: r.offset, MaxBytes: r.most}, part)
		if string(part.Data) != r.want || part.Info.GetSize() != 10 {
			t.Error(r, part)
		}
	}
	part := new(api.ReadFileResponse) // its size is 0, and it has content
	w.must("FileService/Read", &api.ReadFileRequest{Guest: "box", Path: "/proc/self/stat"}, part)
	if len(part.Data) == 0 {
		t.Error("a file of /proc is empty")
	}
	for want, reqs := range map[string][]*api.ReadFileRequest{
		"bad_path":     {{Guest: "box", Path: "file"}, {Guest: "box"}, {Guest: "box", Path: "/a\x00b"}, {Guest: "box", Path: "/" + strings.Repeat("x", 5000)}, {Guest: "box", Path: "/x", User: "a b"}},
		"bad_number":   {{Guest: "box", Path: dir + "/file", Offset: -1}, {Guest: "box", Path: dir + "/file", MaxBytes: -1}},
		"copy_failed":  {{Guest: "box", Path: dir}, {Guest: "box", Path: dir + "/pipe"}},
		"no_such_file": {{Guest: "box", Path: dir + "/none"}},
		"not_found":    {{Guest: "nobody", Path: "/x"}},
	} {
		for _, r := range reqs {
			w.refuses(want, "FileService/Read", r)
		}
	}
	w.refuses("no_such_file", "FileService/List", &api.ListFilesRequest{Guest: "box", Path: dir + "/none"})
	w.must("GuestService/Stop", &api.StopGuestRequest{Name: "box"}, new(api.StopGuestResponse))
	w.refuses("not_running", "FileService/List", &api.ListFilesRequest{Guest: "box", Path: dir})
	w.refuses("not_running", "FileService/Read", &api.ReadFileRequest{Guest: "box", Path: dir + "/file"})
}
