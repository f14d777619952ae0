import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { CarrelError, wrap } from "../src/error.js";
import { EgressAction } from "../src/gen/carrel/v1/carrel_pb.js";
import { hostRule } from "../src/guest.js";
import { checkSocket, placeAt, whyNotPrivate } from "../src/place.js";

test("hosts as a person writes them", () => {
  const parse = (s: string) => { const r = hostRule(s, EgressAction.ALLOW); return [r.host, ...r.ports]; };
  assert.deepEqual(parse("example.org"), ["example.org", 443]);
  assert.deepEqual(parse("*.example.org:8443"), ["*.example.org", 8443]);
  assert.deepEqual(parse("[2001:db8::1]:22"), ["2001:db8::1", 22]);
  assert.deepEqual(parse("2001:db8::1"), ["2001:db8::1", 443]);
  for (const bad of ["", "https://x", "a:0", "a:65536", "a:b", "[::1", "a:1:x"]) assert.throws(() => parse(bad), CarrelError, bad);
});

test("a socket that others could be behind is not used", (t) => {
  const home = mkdtempSync(path.join(tmpdir(), "carrel-ts-"));
  t.after(() => rmSync(home, { recursive: true, force: true }));
  const p = placeAt(home);
  assert.equal(p.socket, path.join(home, "run", "d.sock"));
  assert.equal(checkSocket(p), false); // nothing is there yet
  mkdirSync(p.run, { mode: 0o700 });
  assert.equal(whyNotPrivate(p.run), "");
  writeFileSync(p.socket, "");
  assert.throws(() => checkSocket(p), (e: CarrelError) => e.code === "socket_not_ours");
  chmodSync(p.run, 0o755);
  assert.throws(() => checkSocket(p), (e: CarrelError) => e.code === "socket_not_ours" && e.why.includes("755"));
  assert.throws(() => placeAt("relative"), (e: CarrelError) => e.code === "bad_home");
  // A long home has its socket elsewhere, and two homes never the same.
  const long = (n: string) => placeAt(`/${"x".repeat(120)}/${n}`).socket;
  assert.ok(Buffer.byteLength(long("a")) <= 100);
  assert.notEqual(long("a"), long("b"));
});

test("errors of the wire", () => {
  const e = wrap("do it", new ConnectError("why", Code.NotFound)) as CarrelError;
  assert.deepEqual([e.code, e.message, e.cure], ["not_found", "do it: why", ""]);
});
