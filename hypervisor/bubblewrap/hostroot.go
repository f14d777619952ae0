package bubblewrap

import (
	"os"
	"path/filepath"
)

// HostRoot is the Config's Root of a guest whose system is the host's own,
// read-only.
const HostRoot = "/"

// hostFolders are what a guest sees of the host's system when that is its
// root, each read-only and only with the permissions of a stranger. There is no
// /home, no /root, no /var, no /run and no /opt.
var hostFolders = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostEtc are the entries of /etc that programs need and that hold nothing of
// this machine's users: a list of what is shown, so that what an administrator
// adds is not. Certificates are shown, keys are not.
var hostEtc = []string{
	"alternatives", "ca-certificates", "ca-certificates.conf", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted",
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "locale.alias", "locale.conf", "os-release", "debian_version",
	"magic", "magic.mime", "mime.types", "protocols", "services", "rpc", "ethertypes", "shells", "inputrc",
	"bash.bashrc", "bash_completion.d", "profile", "profile.d", "skel", "terminfo", "vim", "fonts", "xdg", "groff", "manpath.config",
	"perl", "python3", "python3.11", "python3.12", "python3.13", "java-17-openjdk", "java-21-openjdk", "login.defs", "gai.conf", "host.conf", "bindresvport.blacklist",
}

// hostRoot adds the host's system to a plan, as it is on this host. The
// guest's own /etc files (passwd, hosts, ...) are the agent's to write.
func hostRoot(p *Plan) {
	add := func(path string) {
		fi, err := os.Lstat(path)
		if err != nil {
			return
		}
		dest := insideImage + path
		if fi.Mode()&os.ModeSymlink != 0 {
			if target, err := os.Readlink(path); err == nil {
				p.Links = append(p.Links, Link{target, dest})
			}
			return
		}
		p.Binds = append(p.Binds, Bind{Source: path, Dest: dest})
	}
	for _, f := range hostFolders {
		add(f)
	}
	for _, f := range hostEtc {
		add(filepath.Join("/etc", f))
	}
}
