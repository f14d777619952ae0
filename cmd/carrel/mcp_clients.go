package main

import (
	"os"
	"path/filepath"
	"runtime"
)

// mcpClient is a program that finds MCP servers in a file of JSON.
type mcpClient struct {
	name string
	// key is the object in the file that holds servers by their names.
	key string
	// file is the user's own settings, beneath home.
	file func(home string) string
	// seen is a file or folder that is there if the program is.
	seen func(home string) string
	// typed: an entry says that it is "stdio".
	typed bool
	// folder is what the program writes for the folder that is open; empty: it
	// starts servers there; "-": it has none.
	folder string
}

// mcpClients are the programs whose files are known, from their documentation. On
// Linux there is no Claude Desktop of its maker's; others use this path.
var mcpClients = []mcpClient{
	{name: "claude-desktop", key: "mcpServers", folder: "-",
		file: func(home string) string { return filepath.Join(settings(home), "Claude", "claude_desktop_config.json") },
		seen: func(home string) string { return filepath.Join(settings(home), "Claude") }},
	{name: "claude-code", key: "mcpServers", typed: true,
		file: func(home string) string { return filepath.Join(home, ".claude.json") },
		seen: func(home string) string { return filepath.Join(home, ".claude.json") }},
	{name: "cursor", key: "mcpServers", folder: "${workspaceFolder}:review",
		file: func(home string) string { return filepath.Join(home, ".cursor", "mcp.json") },
		seen: func(home string) string { return filepath.Join(home, ".cursor") }},
	{name: "vscode", key: "servers", typed: true, folder: "${workspaceFolder}:review",
		file: func(home string) string { return filepath.Join(settings(home), "Code", "User", "mcp.json") },
		seen: func(home string) string { return filepath.Join(settings(home), "Code", "User") }},
}

// settings is where programs of the desktop keep theirs.
func settings(home string) string {
	switch runtime.GOOS {
	case "darwin":
		return filepath.Join(home, "Library", "Application Support")
	case "windows":
		if d := os.Getenv("APPDATA"); d != "" {
			return d
		}
		return filepath.Join(home, "AppData", "Roaming")
	}
	if d := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		return d
	}
	return filepath.Join(home, ".config")
}

func clientNames() (out []string) {
	for _, c := range mcpClients {
		out = append(out, c.name)
	}
	return out
}

func (c mcpClient) here(home string) bool { return isThere(c.seen(home)) }

// serverEntry is what is written, in this order.
type serverEntry struct {
	Type    string            `json:"type,omitempty"`
	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env,omitempty"`
}

// entry is what the file is to say of carrel at self; args are the user's own.
func (c mcpClient) entry(self string, args []string, carrelHome string) serverEntry {
	e := serverEntry{Command: self, Args: append([]string{"mcp"}, args...)}
	if c.typed {
		e.Type = "stdio"
	}
	if len(args) == 0 {
		switch c.folder {
		case "":
		case "-":
			e.Args = append(e.Args, "--no-share")
		default:
			e.Args = append(e.Args, "-v", c.folder)
		}
	}
	if carrelHome != "" {
		e.Env = map[string]string{"CARREL_HOME": carrelHome}
	}
	return e
}
