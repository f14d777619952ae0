import { spawn } from "node:child_process";
import { accessSync, closeSync, constants, existsSync, mkdirSync, openSync } from "node:fs";
import * as net from "node:net";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CarrelError } from "./error.js";
import { checkSocket, type Place } from "./place.js";

/** How long a daemon may take to be ready, in milliseconds: it takes over guests that run. */
const readyTime = 60_000;

export interface DaemonOptions {
  /** The path of carreld; without it, it is looked for in PATH. */
  daemon?: string | undefined;
  /** Do not start one: a daemon that does not run is the error "not_running". */
  noStart?: boolean | undefined;
}

/** Makes sure that a daemon serves p, and starts it where that is needed and allowed. */
export async function ensureDaemon(p: Place, o: DaemonOptions, signal?: AbortSignal): Promise<void> {
  if (await listens(p)) return;
  if (o.noStart) {
    throw new CarrelError("not_running", `no daemon is running for ${p.socket}`, "", "it starts with the next command, or with `carrel daemon run`");
  }
  mkdirSync(p.run, { recursive: true, mode: 0o700 });
  checkSocket(p);
  const daemon = o.daemon ?? find();
  const until = Date.now() + readyTime;
  for (let wait = 20; ; wait = Math.min(2 * wait, 1000)) {
    const said = await start(daemon, p, signal);
    if (await listens(p)) return;
    // Another one is just ending, or does not listen yet.
    if (said !== "already" || Date.now() > until) throw startError(daemon, p, "it says that it is ready, but nothing listens");
    await sleep(wait, undefined, signal ? { signal } : {});
  }
}

function listens(p: Place): Promise<boolean> {
  if (!checkSocket(p)) return Promise.resolve(false);
  return new Promise((resolve, reject) => {
    const s = net.connect(p.socket);
    s.once("connect", () => { s.destroy(); resolve(true); });
    s.once("error", (err: NodeJS.ErrnoException) => {
      if (err.code === "ECONNREFUSED" || err.code === "ENOENT") resolve(false);
      else reject(new CarrelError("daemon_unreachable", `reach the daemon at ${p.socket}`, err.message, "", err));
    });
  });
}

function find(): string {
  for (const dir of (process.env["PATH"] ?? "").split(path.delimiter)) {
    const file = path.join(dir, "carreld");
    if (!path.isAbsolute(file) || !existsSync(file)) continue;
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      continue;
    }
  }
  throw new CarrelError("daemon_missing", "start the daemon", "there is no carreld in PATH", "install Carrel, or give the path of carreld (the option daemon)");
}

function startError(daemon: string, p: Place, why: string): CarrelError {
  return new CarrelError("daemon_start", `start the daemon ${daemon}`, why, `see ${path.join(p.state, "daemon.log")}, or run \`carrel daemon run\` to watch it start`);
}

/** Runs the daemon in a session of its own, until it says on descriptor 3 that it is ready. */
function start(daemon: string, p: Place, signal?: AbortSignal): Promise<string> {
  mkdirSync(p.state, { recursive: true, mode: 0o700 });
  const log = openSync(path.join(p.state, "daemon.log"), constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  const env: NodeJS.ProcessEnv = { ...process.env, CARREL_CACHE: p.cache };
  if (p.home) env["CARREL_HOME"] = p.home;
  return new Promise((resolve, reject) => {
    const child = spawn(daemon, ["daemon", "--ready-fd", "3"], { cwd: "/", detached: true, env, stdio: ["ignore", log, log, "pipe"] });
    closeSync(log);
    const ready = child.stdio[3] as net.Socket;
    let line = "";
    const done = (f: () => void) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", aborted);
      ready.destroy();
      child.unref(); // it outlives this process on purpose
      f();
    };
    const fail = (why: string) => done(() => reject(startError(daemon, p, why)));
    const aborted = () => done(() => reject(signal?.reason as Error));
    const timer = setTimeout(() => fail(`it did not become ready within ${readyTime / 1000} s`), readyTime);
    signal?.addEventListener("abort", aborted, { once: true });
    child.once("error", (err) => fail(err.message));
    ready.setEncoding("utf8");
    ready.on("data", (s: string) => {
      line += s;
      if (line.length > 4096 || line.includes("\n")) {
        const said = line.slice(0, 4096).split("\n")[0]!.trim();
        if (said === "ok" || said === "already") done(() => resolve(said));
        else fail(said);
      }
    });
    ready.once("end", () => fail("it ended before it was ready"));
    ready.once("error", (err) => fail(err.message));
  });
}
