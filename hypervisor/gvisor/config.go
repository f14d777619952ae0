package gvisor

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// Places in the guest's file system; package agent has the same.
const (
	insideAgent  = "/run/carrel/agent"
	insideShares = "/run/carrel/lower"
)

// Plan is what the sandbox's configuration depends on.
type Plan struct {
	// Name is the guest's.
	Name string
	// Root is the folder of the image, Agent the agent's program and Shares
	// the folders of shares, all on the host and as they shall be mounted.
	Root, Agent string
	Shares      []Bind
	// Base is the host's number for the guest's user 0, of Users in a row. 0:
	// the guest has one user, whom the agent's namespace calls root.
	Base, Users uint32
	// MemoryMiB is the guest's size: what it writes to memory is a part of it.
	MemoryMiB int
}

// Bind is one folder of the host.
type Bind struct {
	Source   string
	Writable bool
}

// The parts of the OCI runtime specification 1.0 that are used
// (github.com/opencontainers/runtime-spec, config.md and config-linux.md).
type (
	ociConfig struct {
		Version  string     `json:"ociVersion"`
		Process  ociProcess `json:"process"`
		Root     ociRoot    `json:"root"`
		Hostname string     `json:"hostname"`
		Mounts   []ociMount `json:"mounts"`
		Linux    ociLinux   `json:"linux"`
	}
	ociProcess struct {
		User         ociUser             `json:"user"`
		Args         []string            `json:"args"`
		Env          []string            `json:"env"`
		Cwd          string              `json:"cwd"`
		Capabilities map[string][]string `json:"capabilities"`
		Rlimits      []ociRlimit         `json:"rlimits"`
	}
	ociUser struct {
		UID uint32 `json:"uid"`
		GID uint32 `json:"gid"`
	}
	ociRlimit struct {
		Type string `json:"type"`
		Hard uint64 `json:"hard"`
		Soft uint64 `json:"soft"`
	}
	ociRoot struct {
		Path string `json:"path"`
	}
	ociMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	ociLinux struct {
		Namespaces  []ociNamespace `json:"namespaces"`
		UIDMappings []ociIDs       `json:"uidMappings,omitempty"`
		GIDMappings []ociIDs       `json:"gidMappings,omitempty"`
	}
	ociNamespace struct {
		Type string `json:"type"`
	}
	ociIDs struct {
		ContainerID uint32 `json:"containerID"`
		HostID      uint32 `json:"hostID"`
		Size        uint32 `json:"size"`
	}
)

// capabilities are the agent's, in the sentry's eyes: the host's kernel knows
// nothing of them. The agent leaves its tasks fewer.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_RESOURCE", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
}

// openFiles is how many files a process of the guest may have open.
const openFiles = 512 << 10

// Config is the sandbox's config.json.
func Config(p Plan) ([]byte, error) {
	tmpfs := func(at, mode string, percent int) ociMount {
		return ociMount{at, "tmpfs", "tmpfs", []string{"nosuid", "nodev", "mode=" + mode, fmt.Sprintf("size=%dm", p.MemoryMiB*percent/100)}}
	}
	c := ociConfig{
		Version: "1.0.0",
		Process: ociProcess{
			Args:         Command(p),
			Env:          []string{},
			Cwd:          "/",
			Capabilities: map[string][]string{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
			Rlimits:      []ociRlimit{{"RLIMIT_NOFILE", openFiles, openFiles}},
		},
		// The sentry lays a layer in its memory over it (--overlay2).
		Root:     ociRoot{p.Root},
		Hostname: p.Name,
		Mounts: []ociMount{
			{"/proc", "proc", "proc", nil},
			{"/sys", "sysfs", "sysfs", []string{"nosuid", "nodev", "noexec", "ro"}},
			{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "mode=0755"}},
			tmpfs("/dev/shm", "1777", 50),
			tmpfs("/tmp", "1777", 50),
			tmpfs("/run", "0755", 10),
			{insideAgent, "bind", p.Agent, []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: ociLinux{Namespaces: []ociNamespace{{"pid"}, {"network"}, {"ipc"}, {"uts"}, {"mount"}}},
	}
	for i, s := range p.Shares {
		mode := "ro"
		if s.Writable {
			mode = "rw"
		}
		c.Mounts = append(c.Mounts, ociMount{insideShares + "/" + strconv.Itoa(i), "bind", s.Source, []string{"bind", mode, "nosuid", "nodev"}})
	}
	if p.Users > 0 {
		c.Linux.Namespaces = append(c.Linux.Namespaces, ociNamespace{"user"})
		c.Linux.UIDMappings = []ociIDs{{0, p.Base, p.Users}}
		c.Linux.GIDMappings = c.Linux.UIDMappings
	}
	return json.MarshalIndent(c, "", "\t")
}

// Command is the agent's command line in the guest. Its standard input is the
// socket that carries streams, its standard error the boot stream.
func Command(p Plan) []string {
	c := []string{insideAgent, "sandbox", "--boot-fd=2", "--call-fd=0", fmt.Sprint("--memory=", p.MemoryMiB)}
	if p.Users == 0 {
		c = append(c, "--one-user")
	}
	return c
}

// Flags are runsc's own, before its sub-command. state is where it keeps what
// it knows of the sandbox, log where it writes what goes wrong.
func Flags(platform, state, log string, oneUser bool) []string {
	f := []string{
		"--root", state, "--log", log, "--platform", platform,
		"--network", "none", "--host-uds", "none", "--host-fifo", "none",
		// Memory and processes are limited by the driver, before runsc runs.
		"--ignore-cgroups",
		"--overlay2", "root:memory",
		// A file of a share may change on the host at any time.
		"--file-access-mounts", "shared",
	}
	if oneUser {
		f = append(f, "--rootless")
	}
	return f
}
