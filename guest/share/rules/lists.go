package rules

import "sync"

// because is a built-in pattern and why it is there.
type because struct{ pattern, why string }

// hidden are names that hold credentials. They are names of files that programs
// keep credentials in, and not of files that merely could: a guest that builds
// something must find everything else.
var hidden = []because{
	{".env", "it holds a program's secrets"},
	{".env.*", "it holds a program's secrets"},
	{"!.env.example", ""}, {"!.env.sample", ""}, {"!.env.template", ""}, {"!.env.dist", ""},
	{"*.pem", "it may be a private key"},
	{"*.key", "it may be a private key"},
	{"*.ppk", "it is a private key of PuTTY"},
	{"*.p12", "it is a store of private keys"},
	{"*.pfx", "it is a store of private keys"},
	{"*.jks", "it is a store of private keys"},
	{"*.keystore", "it is a store of private keys"},
	{"*.kdbx", "it is a store of passwords"},
	// Certificates of public authorities, without which nothing in a virtual
	// environment reaches a server; and what packages bring along for their tests.
	{"!cacert.pem", ""}, {"!ca-bundle.pem", ""}, {"!roots.pem", ""},
	{"!node_modules/**/*.pem", ""}, {"!node_modules/**/*.key", ""}, {"!site-packages/**/*.pem", ""}, {"!site-packages/**/*.key", ""},
	{"id_rsa", "it is a private key of SSH"},
	{"id_dsa", "it is a private key of SSH"},
	{"id_ecdsa", "it is a private key of SSH"},
	{"id_ecdsa_sk", "it is a private key of SSH"},
	{"id_ed25519", "it is a private key of SSH"},
	{"id_ed25519_sk", "it is a private key of SSH"},
	{".ssh", "it holds keys of SSH"},
	{".gnupg", "it holds keys of GnuPG"},
	{".aws", "it holds credentials of AWS"},
	{".azure", "it holds credentials of Azure"},
	{".kube/config", "it holds credentials of a cluster"},
	{".docker/config.json", "it holds credentials of registries"},
	{".netrc", "it holds passwords for hosts"},
	{"_netrc", "it holds passwords for hosts"},
	{".git-credentials", "it holds passwords of git"},
	{".pypirc", "it holds passwords of PyPI"},
	{".pgpass", "it holds passwords of databases"},
	{".htpasswd", "it holds passwords"},
	{".vault-token", "it holds a token of Vault"},
	{"credentials.json", "it holds credentials of an API"},
	{"application_default_credentials.json", "it holds credentials of Google Cloud"},
	{"client_secret*.json", "it holds credentials of an API"},
	{"service-account*.json", "it holds a key of a service account"},
	{"service_account*.json", "it holds a key of a service account"},
}

const (
	runByGit    = "git on the host may run what it says"
	runByEditor = "an editor on the host may run what it says when the folder is opened"
	runByAgent  = "an agent on the host may run what it says, or take it for instructions"
	runByShell  = "a file manager of the host acts on it when the folder is shown"
)

// protected are names that a program of the host acts upon without being asked:
// by opening the folder, by changing into it, at the next commit.
var protected = []because{
	{".git/hooks", "git on the host runs it"},
	{".git/config", runByGit},
	{".git/config.worktree", runByGit},
	{".git/info/attributes", runByGit},
	{".git/commondir", "it leads git on the host to another configuration"},
	// Submodules and worktrees have the same files of their own, at any depth.
	{".git/modules/**/hooks", "git on the host runs it"},
	{".git/modules/**/config", runByGit},
	{".git/modules/**/config.worktree", runByGit},
	{".git/modules/**/info/attributes", runByGit},
	{".git/modules/**/commondir", "it leads git on the host to another configuration"},
	{".git/worktrees/**/hooks", "git on the host runs it"},
	{".git/worktrees/**/config", runByGit},
	{".git/worktrees/**/config.worktree", runByGit},
	{".git/worktrees/**/info/attributes", runByGit},
	{".git/worktrees/**/commondir", "it leads git on the host to another configuration"},
	{".git/worktrees/**/gitdir", "it leads git on the host to another folder"},
	{".husky", "git on the host runs it"},

	{".envrc", "direnv on the host runs it"},
	{".vscode", runByEditor},
	{"*.code-workspace", runByEditor},
	{".idea", runByEditor},
	{".fleet", runByEditor},
	{".zed", runByEditor},
	{".vs", runByEditor},
	{".devcontainer", runByEditor},
	{".devcontainer.json", runByEditor},
	{".vimrc", runByEditor},
	{".exrc", runByEditor},
	{".nvimrc", runByEditor},
	{".nvim.lua", runByEditor},
	{".dir-locals.el", runByEditor},
	{".gdbinit", "a debugger on the host runs it"},
	{".lldbinit", "a debugger on the host runs it"},

	{".claude", runByAgent},
	{".cursor", runByAgent},
	{".cursorrules", runByAgent},
	{".codex", runByAgent},
	{".gemini", runByAgent},
	{".windsurf", runByAgent},
	{".continue", runByAgent},
	{".mcp.json", runByAgent},

	// They name the programs that a package manager runs, and where it gets things.
	{".npmrc", "npm on the host takes programs and servers from it"},
	{".yarnrc", "yarn on the host takes programs and servers from it"},
	{".yarnrc.yml", "yarn on the host takes programs and servers from it"},
	{".cargo/config", "cargo on the host takes programs from it"},
	{".cargo/config.toml", "cargo on the host takes programs from it"},

	{"desktop.ini", runByShell},
	{"autorun.inf", runByShell},
	{"*.lnk", runByShell},
	{"*.url", runByShell},
	{"*.scf", runByShell},
	{"*.library-ms", runByShell},
	{"*.searchconnector-ms", runByShell},
	{"*.desktop", runByShell},

	// Packages bring such files along, where no program looks for them.
	{"!node_modules/**/.vscode", ""}, {"!node_modules/**/.idea", ""}, {"!node_modules/**/.npmrc", ""}, {"!node_modules/**/.yarnrc", ""},
	{"!node_modules/**/.yarnrc.yml", ""}, {"!node_modules/**/.husky", ""}, {"!node_modules/**/.devcontainer", ""}, {"!node_modules/**/.envrc", ""},
	{"!node_modules/**/.claude", ""}, {"!node_modules/**/.cursor", ""}, {"!node_modules/**/.cursorrules", ""}, {"!node_modules/**/*.code-workspace", ""},
	{"!site-packages/**/.vscode", ""}, {"!site-packages/**/.idea", ""}, {"!site-packages/**/*.desktop", ""},
}

// looked are names that people mean to change, and that a program of the host
// runs or obeys at their next ordinary command.
var looked = []because{
	{"AGENTS.md", "agents take it for instructions"},
	{"CLAUDE.md", "agents take it for instructions"},
	{"GEMINI.md", "agents take it for instructions"},
	{".github/copilot-instructions.md", "agents take it for instructions"},
	{".aider.conf.yml", "an agent on the host may run what it says"},
	{".git", "it belongs to git's own state"},
	{".gitattributes", "git on the host may run the filters that it names"},
	{".gitmodules", "git on the host fetches what it names"},
	{".github/workflows", "a server runs it after the next push"},
	{".gitlab-ci.yml", "a server runs it after the next push"},
	{".circleci", "a server runs it after the next push"},
	{".pre-commit-config.yaml", "git on the host may run it at every commit"},
	{"lefthook.yml", "git on the host may run it at every commit"},
	{".lefthook.yml", "git on the host may run it at every commit"},
	{"Makefile", "make runs it"},
	{"GNUmakefile", "make runs it"},
	{"*.mk", "make runs it"},
	{"Justfile", "just runs it"},
	{"Taskfile.yml", "task runs it"},
	{"Rakefile", "rake runs it"},
	{"Gemfile", "bundler runs it"},
	{"CMakeLists.txt", "cmake runs it"},
	{"package.json", "npm runs the scripts in it"},
	{".pnpmfile.cjs", "pnpm runs it"},
	{"bunfig.toml", "bun takes programs from it"},
	{"binding.gyp", "npm runs it at the next install"},
	{"conftest.py", "pytest runs it"},
	{"sitecustomize.py", "python runs it at every start"},
	{"usercustomize.py", "python runs it at every start"},
	{"*.pth", "python runs it at every start"},
	{"setup.py", "pip runs it"},
	{"pyproject.toml", "pip and other programs take programs from it"},
	{"tox.ini", "tox runs it"},
	{"noxfile.py", "nox runs it"},
	{"build.rs", "cargo runs it"},
	{"build.gradle", "gradle runs it"},
	{"build.gradle.kts", "gradle runs it"},
	{"settings.gradle", "gradle runs it"},
	{"gradlew", "it is a program"},
	{"mvnw", "it is a program"},
	{".mvn", "maven takes programs from it"},
	{".bazelrc", "bazel takes programs from it"},
	{"docker-compose.yml", "docker runs what it says, with the host's folders"},
	{"docker-compose.yaml", "docker runs what it says, with the host's folders"},
	{"compose.yml", "docker runs what it says, with the host's folders"},
	{"compose.yaml", "docker runs what it says, with the host's folders"},
	{".tool-versions", "it chooses the programs that a shell of the host finds"},
	{"mise.toml", "it chooses the programs that a shell of the host finds"},
	{".mise.toml", "it chooses the programs that a shell of the host finds"},
	{".tmuxinator.yml", "tmuxinator runs it"},
	{"node_modules/.bin", "npm runs the programs in it"},
	{".venv/bin", "the programs in it take the place of the host's"},
	{"venv/bin", "the programs in it take the place of the host's"},
	{".venv/scripts", "the programs in it take the place of the host's"},
	{"venv/scripts", "the programs in it take the place of the host's"},
	{"pyvenv.cfg", "it leads python to another folder"},
	{".DS_Store", "a file manager of the host reads it"},
	{"*.app", "it is a program"},
	{"*.command", "a file manager of the host runs it"},
	{"*.webloc", "a file manager of the host follows it"},
}

var warnings = sync.OnceValue(func() *matcher {
	m := &matcher{}
	for _, list := range [][]because{looked, protected} {
		var entries []entry
		for _, b := range list {
			entries = append(entries, entry{List{b.pattern, BuiltIn}, b.why})
		}
		if err := m.add(entries); err != nil {
			panic(err) // the lists are tested
		}
	}
	return m
})

// Warn says why a change of the path needs a yes of its own ("git on the host
// runs it"), or "". It knows the names that are protected and those that people
// mean to change but should look at.
func Warn(path string) string {
	w := walk{m: warnings()}
	w.judge(path, 0)
	if w.hit < 0 {
		return ""
	}
	return w.m.list[w.hit].reason
}
