// Over a real daemon, and real guests behind the process wall. CARREL_HOME and
// PATH lead to a daemon of the test's own: guest/client/ts_linux_test.go runs this.
import assert from "node:assert/strict";
import { cpSync, existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { after, before, test } from "node:test";
import { Carrel, CarrelError, check, connect, ExitError, run } from "../src/index.js";
import { isAbort } from "../src/error.js";
import { mend, script } from "../examples/agent.js";

const wall = { boundary: "process" } as const;
let c: Carrel;

before(async () => {
  await assert.rejects(connect({ noStart: true }), (e: CarrelError) => e.code === "not_running" && e.cure !== "");
  // Two at once start one daemon.
  const [one, two] = await Promise.all([connect(), connect()]);
  two.close();
  c = one;
});
const made: string[] = [];
after(() => {
  c.close();
  for (const dir of made) rmSync(dir, { recursive: true, force: true });
});

function project(): string {
  const dir = realpathSync(mkdtempSync(path.join(tmpdir(), "carrel-ts-")));
  made.push(dir);
  writeFileSync(path.join(dir, "a.txt"), "first\n");
  return dir;
}

test("run in a fresh guest, which goes", async () => {
  const r = await run(["sh", "-c", "pwd; echo err >&2; exit 3"], { ...wall, shares: [{ path: ".", mode: "ro" }] });
  assert.deepEqual([r.status, r.stdout, r.stderr], [3, `${process.cwd()}\n`, "err\n"]);
  assert.throws(() => check(r), (e: ExitError) => e.result.status === 3);
  await c.settled(r.guest);
  assert.ok(!(await c.guests()).some((g) => g.name === r.guest));
});

test("errors have a code, the cause and the cure", async () => {
  await assert.rejects(c.guest({ ...wall, shares: ["/no/such/folder"] }), (e: CarrelError) => e instanceof CarrelError && e.code !== "" && e.why !== "");
  await assert.rejects(c.guest({ ...wall, image: "no-such-image" }), (e: CarrelError) => e.code === "image_missing" && e.cure.includes("carrel image build"));
  await assert.rejects(c.guest({ ...wall, allow: ["https://x"] }), (e: CarrelError) => e.code === "bad_host");
});

test("streams, input, signals and limits", async () => {
  await using g = await c.guest(wall);
  const t = await g.start(["sh", "-c", "while read -r l; do echo \"got $l\"; done; echo end >&2"], { stdin: "pipe" });
  const seen: string[] = [];
  t.write("one\n");
  for await (const o of t) {
    const text = new TextDecoder().decode(o.data);
    seen.push(`${o.stream}: ${text}`);
    if (text.includes("got one")) t.write("two\n");
    if (text.includes("got two")) t.closeInput();
  }
  assert.deepEqual(seen, ["stdout: got one\n", "stdout: got two\n", "stderr: end\n"]);
  assert.equal((await t.wait()).status, 0);

  const big = await g.run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], { maxOutput: 1000 });
  assert.deepEqual([big.stdout, big.dropped], ["x".repeat(1000), 2_999_000]);
  assert.equal((await g.run(["cat"], { stdin: "given" })).stdout, "given");
  const killed = await g.start(["sleep", "1000"]);
  killed.kill(15);
  const ended = await killed.wait();
  assert.deepEqual([ended.status, ended.signal], [143, 15]);
  assert.equal((await g.run(["sleep", "1000"], { timeout: 200 })).timedOut, true);
  assert.equal((await g.run(["no-such-program"])).status, 127);
});

test("an AbortSignal kills the task", async () => {
  await using g = await c.guest(wall);
  const stop = new AbortController();
  const t = await g.start(["sh", "-c", "echo up; exec sleep 1000"], { signal: stop.signal });
  const reading = (async () => {
    for await (const o of t) if (new TextDecoder().decode(o.data) === "up\n") stop.abort();
  })();
  await reading;
  await assert.rejects(t.wait(), isAbort);
  const after = await g.run(["sh", "-c", "ps -ef 2>/dev/null | grep -c '[s]leep 1000'; true"]);
  assert.ok(!/^[1-9]/.test(after.stdout), after.stdout);
  await assert.rejects(g.run(["true"], { signal: AbortSignal.abort() }), isAbort);
});

test("files", async () => {
  await using g = await c.guest(wall);
  const data = new Uint8Array(1_000_000).map((_, i) => i % 251);
  await g.writeFile("/tmp/deep/er/file", data, { mode: 0o600 });
  assert.deepEqual(new Uint8Array(await g.readFile("/tmp/deep/er/file")), data);
  await assert.rejects(g.readFile("/tmp/deep/er/file", { maxBytes: 1000 }), (e: CarrelError) => e.code === "too_large");
  assert.deepEqual((await g.readdir("/tmp/deep/er")).map((f) => [f.name, f.size, f.mode]), [["file", 1_000_000n, 0o600]]);
  await assert.rejects(g.readFile("/tmp/none"), (e: CarrelError) => e.code === "no_such_file");
  await assert.rejects(g.writeFile("relative", ""), (e: CarrelError) => e.code === "bad_path");
});

test("review: what was looked at is applied, and nothing else", async () => {
  const dir = project();
  const g = await c.guest({ ...wall, shares: [dir] });
  await g.must(["sh", "-c", "echo second >> a.txt; echo new > new.txt; echo 'export A=1' > .envrc"]);
  const all = await g.diff();
  assert.deepEqual(all.map((x) => path.basename(x.path)), [".envrc", "a.txt", "new.txt"]);
  assert.match(all[1]!.diff, /\+second/);
  await g.must(["sh", "-c", "echo later > new.txt"]);
  const out = await g.apply(all);
  assert.deepEqual(out.applied.map((p) => path.basename(p)), ["a.txt"]);
  assert.equal(out.left.length, 2); // one needs its own yes, one has changed since
  assert.deepEqual([readFileSync(path.join(dir, "a.txt"), "utf8"), existsSync(path.join(dir, "new.txt"))], ["first\nsecond\n", false]);
  await g.apply(await g.diff(), { acceptWarnings: true });
  assert.equal(readFileSync(path.join(dir, "new.txt"), "utf8"), "later\n");
  await g.must(["sh", "-c", "echo waits > waits.txt"]);
  await g.close();
  await c.settled(g.name);
  const kept = (await c.guests()).find((x) => x.name === g.name);
  assert.ok(kept, "a guest whose changes wait is kept");
  assert.equal((await g.summary()).added, 1);
  assert.equal(await g.discard(), 1);
});

for (const apply of [false, true]) {
  test(`the example agent, whose person says ${apply ? "yes" : "no"} at the end`, async () => {
    const dir = project();
    cpSync(path.join(import.meta.dirname, "../../../examples/repository"), dir, { recursive: true });
    const said: string[] = [], asked: string[] = [];
    await mend(dir, script(), {
      say: (l) => said.push(l),
      yes: async (q) => (asked.push(q), q.includes("docs.example") || (apply && q === "Apply this?")),
    }, wall);
    assert.deepEqual(asked, ['May the guest reach "docs.example", port 443, once?', 'May the guest reach "paste.example", port 443, once?', "Apply this?"]);
    assert.ok(said.includes("  status 1") && said.includes("  status 0"), said.join("\n"));
    assert.equal(readFileSync(path.join(dir, "sum.sh"), "utf8"), apply ? "echo $(($1 + $2))\n" : "echo $(($1 - $2))\n");
  });
}
