package rules

import (
	"slices"
	"sync"
)

// because is a built-in pattern and why it is there.
type because struct{ pattern, why string }

// hidden are names that hold credentials. They are names of files that programs
// keep credentials in, and not of files that merely could: a guest that builds
// something must find everything else.
var hidden = slices.Concat([]because{
	{".env", "it holds a program's secrets"},
	{".env.*", "it holds a program's secrets"},
	{"!.env.example", ""}, {"!.env.sample", ""}, {"!.env.template", ""}, {"!.env.dist", ""}, {"!.env.defaults", ""},
	{".dev.vars", "it holds a program's secrets"},
	{"*.pem", "it may be a private key"},
	{"*.key", "it may be a private key"},
	{"*.p8", "it is a private key"},
	{"*.ppk", "it is a private key of PuTTY"},
	{"*.p12", "it is a store of private keys"},
	{"*.pfx", "it is a store of private keys"},
	{"*.jks", "it is a store of private keys"},
	{"*.keystore", "it is a store of private keys"},
	{"!debug.keystore", ""}, // the same for everybody; builds for Android sign with it
	{"*.kdbx", "it is a store of passwords"},
	// Certificates of public authorities, without which nothing in a virtual
	// environment reaches a server.
	{"!cacert.pem", ""}, {"!ca-bundle.pem", ""}, {"!roots.pem", ""},
	{"id_rsa", "it is a private key of SSH"},
	{"id_dsa", "it is a private key of SSH"},
	{"id_ecdsa", "it is a private key of SSH"},
	{"id_ecdsa_sk", "it is a private key of SSH"},
	{"id_ed25519", "it is a private key of SSH"},
	{"id_ed25519_sk", "it is a private key of SSH"},
	{".ssh", "it holds keys of SSH"},
	{".gnupg", "it holds keys of GnuPG"},
	{".password-store", "it is a store of passwords"},
	{".aws", "it holds credentials of AWS"},
	{".azure", "it holds credentials of Azure"},
	{".config/gcloud", "it holds credentials of Google Cloud"},
	{".config/gh/hosts.yml", "it holds a token of GitHub"},
	{".kube/config", "it holds credentials of a cluster"},
	{".docker/config.json", "it holds credentials of registries"},
	{".dockercfg", "it holds credentials of registries"},
	{".netrc", "it holds passwords for hosts"},
	{"_netrc", "it holds passwords for hosts"},
	{".git-credentials", "it holds passwords of git"},
	{".pypirc", "it holds passwords of PyPI"},
	{".cargo/credentials", "it holds tokens of registries"},
	{".cargo/credentials.toml", "it holds tokens of registries"},
	{".gem/credentials", "it holds tokens of registries"},
	{".m2/settings.xml", "it holds passwords of repositories"},
	{".pgpass", "it holds passwords of databases"},
	{".my.cnf", "it holds passwords of databases"},
	{".htpasswd", "it holds passwords"},
	{".s3cfg", "it holds credentials of a store"},
	{".boto", "it holds credentials of a store"},
	{".databrickscfg", "it holds credentials of an API"},
	{".vault-token", "it holds a token of Vault"},
	{".vault_pass", "it holds a password of Ansible"},
	{".terraformrc", "it holds tokens of Terraform"},
	{".terraform.d/credentials.tfrc.json", "it holds tokens of Terraform"},
	{".claude/.credentials.json", "it holds an agent's credentials"},
	{".codex/auth.json", "it holds an agent's credentials"},
	{"credentials.json", "it holds credentials of an API"},
	{"application_default_credentials.json", "it holds credentials of Google Cloud"},
	{"client_secret*.json", "it holds credentials of an API"},
	{"gha-creds-*.json", "it holds credentials of an API"},
	{"service-account*.json", "it holds a key of a service account"},
	{"service_account*.json", "it holds a key of a service account"},
}, others, []because{
	// By convention data of tests, which is nobody's secret and without which
	// the tests fail.
	{"!testdata/**/*", ""}, {"!fixtures/**/*", ""},
})

// others are folders of packages that others have written. What looks like a
// credential there came over the network, and what looks like an editor's or an
// agent's file is read by none: they look where they are opened, and above.
// Installing packages fails if such names cannot be made.
var others = []because{
	{"!node_modules/**/*", ""}, {"!site-packages/**/*", ""}, {"!pkg/mod/**/*", ""}, {"!.cargo/registry/**/*", ""},
}

const (
	runByGit    = "git on the host may run what it says"
	runByEditor = "an editor on the host may run what it says when the folder is opened"
	runByAgent  = "an agent on the host may run what it says, or take it for instructions"
	runByFiles  = "a file manager of the host acts on it when the folder is shown"
	runByShell  = "a shell of the host runs it, where a person's own folder leads to it"
	runByDebug  = "a debugger on the host runs it"
	elsewhere   = "it leads git on the host to another configuration"
	continued   = "git on the host runs what it says when what was begun there is continued"
)

// protected are names that a program of the host acts upon without being asked:
// by opening the folder, by changing into it, at the next commit.
var protected = slices.Concat(protectedInProjects, others, []because{{"!vendor/**/*", ""}}, protectedAnywhere)

var protectedInProjects = []because{
	{".husky", "git on the host runs it"},
	{".envrc", "direnv on the host runs it"},

	{".vscode", runByEditor},
	{"*.code-workspace", runByEditor},
	{".idea", runByEditor},
	{".fleet", runByEditor},
	{".zed", runByEditor},
	{".helix", runByEditor},
	{".vs", runByEditor},
	{".devcontainer", runByEditor},
	{".devcontainer.json", runByEditor},
	{".vimrc", runByEditor},
	{".lvimrc", runByEditor},
	{".exrc", runByEditor},
	{".nvimrc", runByEditor},
	{".nvim.lua", runByEditor},
	{".dir-locals.el", runByEditor},
	{".gdbinit", runByDebug},
	{".lldbinit", runByDebug},
	{".pdbrc", runByDebug},

	{".claude", runByAgent},
	{".cursor", runByAgent},
	{".cursorrules", runByAgent},
	{".codex", runByAgent},
	{".gemini", runByAgent},
	{".windsurf", runByAgent},
	{".windsurfrules", runByAgent},
	{".continue", runByAgent},
	{".cline", runByAgent},
	{".clinerules", runByAgent},
	{".roo", runByAgent},
	{".roomodes", runByAgent},
	{".kiro", runByAgent},
	{".amazonq", runByAgent},
	{".augment", runByAgent},
	{".opencode", runByAgent},
	{".trae", runByAgent},
	{".junie", runByAgent},
	{".qwen", runByAgent},
	{".crush", runByAgent},
	{".crush.json", runByAgent},
	{"crush.json", runByAgent},
	{".factory", runByAgent},
	{".mcp.json", runByAgent},
	{".carrel.yaml", "carrel on the host hides and protects what it says"},

	{".bashrc", runByShell},
	{".bash_profile", runByShell},
	{".bash_login", runByShell},
	{".bash_logout", runByShell},
	{".profile", runByShell},
	{".zshrc", runByShell},
	{".zshenv", runByShell},
	{".zprofile", runByShell},
	{".zlogin", runByShell},
	{".zlogout", runByShell},
	{".ripgreprc", "ripgrep on the host may run what it says"},

	// They name the programs that a package manager runs, and where it gets things.
	{".npmrc", "npm on the host takes programs and servers from it"},
	{".yarnrc", "yarn on the host takes programs and servers from it"},
	{".yarnrc.yml", "yarn on the host takes programs and servers from it"},
	{".cargo/config", "cargo on the host takes programs from it"},
	{".cargo/config.toml", "cargo on the host takes programs from it"},
}

var protectedAnywhere = []because{
	// A repository without a work tree is a folder like any other, by custom
	// with a name that ends in .git.
	{".git/hooks", "git on the host runs it"},
	{"*.git/hooks", "git on the host runs it"},
	{".git/config", runByGit},
	{"*.git/config", runByGit},
	{".git/config.worktree", runByGit},
	{".git/info/attributes", runByGit},
	{".git/commondir", elsewhere},
	// Servers that have no lines in the configuration, in the ways of old.
	{".git/remotes", "git on the host fetches from what it names, and sends there"},
	{".git/branches", "git on the host fetches from what it names, and sends there"},
	// What a rebase, an am, a cherry-pick of several or a bisect leaves half done:
	// lines of exec, options of merge programs, names that old shells evaluate.
	{".git/rebase-merge", continued},
	{".git/rebase-apply", continued},
	{".git/sequencer", continued},
	{".git/BISECT_*", continued},
	// Submodules and worktrees have the same files of their own, at any depth.
	{".git/modules/**/hooks", "git on the host runs it"},
	{".git/modules/**/config", runByGit},
	{".git/modules/**/config.worktree", runByGit},
	{".git/modules/**/info/attributes", runByGit},
	{".git/modules/**/commondir", elsewhere},
	{".git/modules/**/rebase-merge", continued},
	{".git/modules/**/rebase-apply", continued},
	{".git/modules/**/sequencer", continued},
	{".git/modules/**/BISECT_*", continued},
	{".git/worktrees/**/hooks", "git on the host runs it"},
	{".git/worktrees/**/config", runByGit},
	{".git/worktrees/**/config.worktree", runByGit},
	{".git/worktrees/**/info/attributes", runByGit},
	{".git/worktrees/**/commondir", elsewhere},
	{".git/worktrees/**/rebase-merge", continued},
	{".git/worktrees/**/rebase-apply", continued},
	{".git/worktrees/**/sequencer", continued},
	{".git/worktrees/**/BISECT_*", continued},
	{".git/worktrees/**/gitdir", elsewhere},
	{".gitconfig", runByGit},
	{".gitmodules", "git on the host fetches what it names, and has run what it says"},
	{".hg/hgrc", "hg on the host runs what it says"},
	{".hg/hgrc-not-shared", "hg on the host runs what it says"},
	{".hg/sharedpath", "it leads hg on the host to another configuration"},
	{".jj/repo/config.toml", "jj on the host runs what it says"},

	{"desktop.ini", runByFiles},
	{"autorun.inf", runByFiles},
	{"*.lnk", runByFiles},
	{"*.url", runByFiles},
	{"*.scf", runByFiles},
	{"*.library-ms", runByFiles},
	{"*.searchconnector-ms", runByFiles},
}

// looked are names that people mean to change, and that a program of the host
// runs or obeys at their next ordinary command.
var looked = slices.Concat([]because{
	{"AGENTS.md", "agents take it for instructions"},
	{"CLAUDE.md", "agents take it for instructions"},
	{"CLAUDE.local.md", "agents take it for instructions"},
	{"GEMINI.md", "agents take it for instructions"},
	{".goosehints", "agents take it for instructions"},
	{".github/copilot-instructions.md", "agents take it for instructions"},
	{".github/instructions", "agents take it for instructions"},
	{".aider.conf.yml", "an agent on the host may run what it says"},
	{"opencode.json", "an agent on the host may run what it says"},
	{".gitattributes", "git on the host may run the filters that it names"},
	{".github/workflows", "a server runs it after the next push"},
	{".github/actions", "a server runs it after the next push"},
	{".gitlab-ci.yml", "a server runs it after the next push"},
	{".circleci", "a server runs it after the next push"},
	{".travis.yml", "a server runs it after the next push"},
	{"azure-pipelines.yml", "a server runs it after the next push"},
	{"Jenkinsfile", "a server runs it after the next push"},
	{".pre-commit-config.yaml", "git on the host may run it at every commit"},
	{"lefthook.yml", "git on the host may run it at every commit"},
	{".lefthook.yml", "git on the host may run it at every commit"},
	{".githooks", "git on the host may run it"},
	{"Makefile", "make runs it"},
	{"GNUmakefile", "make runs it"},
	{"*.mk", "make runs it"},
	{"Justfile", "just runs it"},
	{"Taskfile.yml", "task runs it"},
	{"Rakefile", "rake runs it"},
	{"Gemfile", "bundler runs it"},
	{"Vagrantfile", "vagrant runs it"},
	{"Tiltfile", "tilt runs it"},
	{"SConstruct", "scons runs it"},
	{"meson.build", "meson runs it"},
	{"CMakeLists.txt", "cmake runs it"},
	{"CMakePresets.json", "cmake takes programs from it"},
	{"flake.nix", "nix runs it"},
	{"shell.nix", "nix runs it"},
	{"package.json", "npm runs the scripts in it"},
	{".pnpmfile.cjs", "pnpm runs it"},
	{".yarn/plugins", "yarn runs it"},
	{".yarn/releases", "yarn runs it"},
	{"bunfig.toml", "bun takes programs from it"},
	{"binding.gyp", "npm runs it at the next install"},
	{"conftest.py", "pytest runs it"},
	{"setup.py", "pip runs it"},
	{"pyproject.toml", "pip and other programs take programs from it"},
	{"tox.ini", "tox runs it"},
	{"noxfile.py", "nox runs it"},
	{".Rprofile", "R runs it at every start"},
	{".irbrc", "irb runs it"},
	{".pryrc", "pry runs it"},
	{".rspec", "rspec takes programs from it"},
	{"build.rs", "cargo runs it"},
	{"build.gradle", "gradle runs it"},
	{"build.gradle.kts", "gradle runs it"},
	{"settings.gradle", "gradle runs it"},
	{"settings.gradle.kts", "gradle runs it"},
	{"gradlew", "it is a program"},
	{"gradle-wrapper.properties", "gradle runs the program that it names"},
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
}, others, []because{
	{"!vendor/**/*", ""},
	{".git", "it belongs to git's own state"},
	{"sitecustomize.py", "python runs it at every start"},
	{"usercustomize.py", "python runs it at every start"},
	{"*.pth", "python runs it at every start"},
	{"node_modules/.bin", "npm runs the programs in it"},
	{".venv/bin", "the programs in it take the place of the host's"},
	{"venv/bin", "the programs in it take the place of the host's"},
	{".venv/scripts", "the programs in it take the place of the host's"},
	{"venv/scripts", "the programs in it take the place of the host's"},
	{"pyvenv.cfg", "it leads python to another folder"},
	{".DS_Store", "a file manager of the host reads it"},
	{"*.app", "it is a program"},
	{"*.desktop", "a file manager of the host may run what it says"},
	{"*.command", "a file manager of the host runs it"},
	{"*.terminal", "a file manager of the host runs it"},
	{"*.webloc", "a file manager of the host follows it"},
	{"*.inetloc", "a file manager of the host follows it"},
	{"*.fileloc", "a file manager of the host follows it"},
})

// warnings are two lists, of which the first that says something counts: why a
// name is protected is told rather than that it lies in .git.
var warnings = sync.OnceValue(func() (lists [2]matcher) {
	for i, list := range [][]because{protected, looked} {
		var entries []entry
		for _, b := range list {
			entries = append(entries, entry{List{b.pattern, BuiltIn}, b.why})
		}
		if err := lists[i].add(entries); err != nil {
			panic(err) // the lists are tested
		}
	}
	return lists
})

// Warn says why a change of the path needs a yes of its own ("git on the host
// runs it"), or "". It knows the names that are protected and those that people
// mean to change but should look at.
func Warn(path string) string {
	lists := warnings()
	for i := range lists {
		w := walk{m: &lists[i]}
		if w.judge(path); w.hit >= 0 {
			return w.m.list[w.hit].reason
		}
	}
	return ""
}
