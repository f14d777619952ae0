# Homebrew's formula: scripts/package/render fills in what stands between @s.
class Carrel < Formula
  desc "Run untrusted work in a microVM that sees only what you share"
  homepage "https://github.com/carrel-vm/carrel"
  url "https://github.com/carrel-vm/carrel/releases/download/v@VERSION@/carrel-@VERSION@.tar.gz"
  sha256 "@SHA256_SOURCE@"
  license "Apache-2.0"

  depends_on "go" => :build

  on_macos do
    depends_on macos: :ventura
  end

  on_linux do
    depends_on "qemu"
  end

  def install
    # On macOS machines are made through cgo.
    ENV["CGO_ENABLED"] = OS.mac? ? "1" : "0"
    release = "-X main.release=#{version} -X github.com/carrel-vm/carrel/guest/client.release=#{version}"
    ldflags = "-s -w #{release}"
    # The programs lie together, where each finds the others.
    system "go", "build", *std_go_args(ldflags:, output: libexec/"carrel"), "./cmd/carrel"
    system "go", "build", *std_go_args(ldflags:, output: libexec/"carreld"), "./cmd/carreld"
    ENV["CGO_ENABLED"] = "0"
    system "go", "build", *std_go_args(ldflags:, output: libexec/"carrel-agent"), "./cmd/carrel-agent"
    system "scripts/sign", libexec/"carreld" if OS.mac?
    bin.install_symlink libexec/"carrel"
    doc.install Dir["docs/*.md"]
    generate_completions_from_executable(bin/"carrel", "completion")
  end

  def caveats
    <<~EOS
      The daemon starts with the first command. To have it start when you log in:
        carrel daemon install
      To see what is missing on this machine:
        carrel doctor
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/carrel version")
    ENV["CARREL_HOME"] = testpath/"home"
    assert_match "entitlement", shell_output("#{libexec}/carreld doctor") if OS.mac?
  end
end
