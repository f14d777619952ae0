package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/client"
)

// A guest for a few commands, in the shape of os/exec.
func Example() {
	ctx := context.Background()
	c, err := client.Connect(ctx, options()) // client.Options{} finds the user's daemon, and starts it
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.StartSession(ctx, &api.GuestSpec{Boundary: "process"}, client.GuestOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	cmd := c.Command(ctx, s.Guest.Name, "tr", "a-z", "A-Z")
	cmd.Stdin = strings.NewReader("hello\n")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
	err = c.Command(ctx, s.Guest.Name, "sh", "-c", "exit 3").Run()
	var exit *client.ExitError
	if errors.As(err, &exit) {
		fmt.Println("status", exit.Status)
	}
	// Output:
	// HELLO
	// status 3
}

// A guest's files are a file system like any other.
func ExampleClient_Files() {
	ctx := context.Background()
	c, err := client.Connect(ctx, options())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.StartSession(ctx, &api.GuestSpec{Boundary: "process"}, client.GuestOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	files, err := c.Files(ctx, s.Guest.Name, "/tmp", "")
	if err != nil {
		log.Fatal(err)
	}
	if err := files.MkdirAll("site/css", 0o755); err != nil {
		log.Fatal(err)
	}
	if err := files.WriteFile("site/index.html", []byte("<p>hello"), 0o644); err != nil {
		log.Fatal(err)
	}
	err = fs.WalkDir(files, "site", func(path string, d fs.DirEntry, err error) error {
		fmt.Println(path, d.IsDir())
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// site true
	// site/css true
	// site/index.html false
}

// What a guest changed waits until it is applied.
func ExampleClient_Apply() {
	ctx := context.Background()
	project, err := os.MkdirTemp("", "project")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(project)
	c, err := client.Connect(ctx, options())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.StartSession(ctx, &api.GuestSpec{Boundary: "process", Shares: []*api.Share{{Path: project}}}, client.GuestOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	cmd := c.Command(ctx, s.Guest.Name, "sh", "-c", "echo done > result")
	cmd.Dir = project
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
	var seen [][]byte // what was looked at is what is applied
	err = c.Diff(ctx, s.Guest.Name, client.DiffOptions{}, func(ch *api.Change) error {
		fmt.Printf("%s\n%s", strings.TrimPrefix(ch.Path, project), ch.Diff)
		seen = append(seen, ch.Seen)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	err = c.Apply(ctx, s.Guest.Name, client.ApplyOptions{Seen: seen}, func(ev *api.ApplyEvent) error {
		fmt.Printf("applied: %v\n", ev.Refused == "")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	b, err := os.ReadFile(project + "/result")
	fmt.Printf("%s%v\n", b, err)
	// Output:
	// /result
	// @@ -0,0 +1,1 @@
	// +done
	// applied: true
	// done
	// <nil>
}
