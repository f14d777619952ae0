// Where the daemon keeps its things: guest/place in the Go code says the same.
import { createHash } from "node:crypto";
import { lstatSync, type Stats } from "node:fs";
import { homedir } from "node:os";
import * as path from "node:path";
import { CarrelError } from "./error.js";

export interface Place {
  /** CARREL_HOME, or "" for the platform's usual folders. */
  home: string;
  state: string;
  cache: string;
  run: string;
  socket: string;
}

/** The longest path of a socket, in bytes (unix(7)). */
const maxSocket = 100;

export function placeAt(home = process.env["CARREL_HOME"] ?? ""): Place {
  let p: Omit<Place, "socket">;
  if (home !== "") {
    if (!path.isAbsolute(home)) throw bad(`CARREL_HOME is "${home}": it must be an absolute path`);
    home = path.normalize(home).replace(/(.)\/+$/, "$1");
    p = { home, state: path.join(home, "state"), cache: path.join(home, "cache"), run: path.join(home, "run") };
  } else {
    p = usual();
  }
  const cache = process.env["CARREL_CACHE"];
  if (cache) {
    if (!path.isAbsolute(cache)) throw bad(`CARREL_CACHE is "${cache}": it must be an absolute path`);
    p.cache = path.normalize(cache);
  }
  let socket = path.join(p.run, "d.sock");
  if (Buffer.byteLength(socket) > maxSocket) {
    p.run = shortRun(p.run);
    socket = path.join(p.run, "d.sock");
  }
  return { ...p, socket };
}

function usual(): Omit<Place, "socket"> {
  const home = homedir();
  if (process.platform === "win32") {
    throw new CarrelError("unimplemented", "find the daemon", "named pipes are not spoken yet on Windows", "use the command line there");
  }
  if (process.platform === "darwin") {
    const support = path.join(home, "Library", "Application Support", "carrel");
    return { home: "", state: path.join(support, "state"), cache: path.join(home, "Library", "Caches", "carrel"), run: path.join(support, "run") };
  }
  const dir = (name: string, rest: string) => {
    const v = process.env[name];
    return path.join(v && path.isAbsolute(v) ? v : path.join(home, rest), "carrel");
  };
  const state = dir("XDG_STATE_HOME", ".local/state");
  const runtime = process.env["XDG_RUNTIME_DIR"];
  return {
    home: "", state, cache: dir("XDG_CACHE_HOME", ".cache"),
    run: runtime && path.isAbsolute(runtime) ? path.join(runtime, "carrel") : path.join(state, "run"),
  };
}

function shortRun(long: string): string {
  const id = createHash("sha256").update(long).digest("hex").slice(0, 8);
  const uid = process.getuid?.() ?? -1;
  const dir = `/run/user/${uid}`;
  return whyNotPrivate(dir) === "" ? path.join(dir, `carrel-${id}`) : `/tmp/carrel-${uid}-${id}`;
}

function bad(why: string): CarrelError {
  return new CarrelError("bad_home", "find the daemon's folders", why);
}

function look(p: string): Stats | undefined {
  return lstatSync(p, { throwIfNoEntry: false });
}

/** Why dir is not a folder that only this user may enter; "" if it is one. */
export function whyNotPrivate(dir: string): string {
  const st = look(dir);
  if (!st) return `${dir} is not there`;
  if (!st.isDirectory()) return `${dir} is not a folder: remove it`;
  if (st.uid !== process.geteuid?.()) return `${dir} belongs to user ${st.uid}, not to you`;
  if (st.mode & 0o077) return `${dir} has mode ${(st.mode & 0o777).toString(8)}, so that others may enter it`;
  return "";
}

/**
 * Throws unless nobody else can be behind p's socket, and says whether there is
 * one. Node has no call for the user at the other end of a socket, so the folder
 * and the socket's owner are what counts here.
 */
export function checkSocket(p: Place): boolean {
  const run = look(p.run);
  if (!run) return false;
  const why = whyNotPrivate(p.run);
  const st = look(p.socket);
  const bad = why || (st && (!st.isSocket() || st.uid !== process.geteuid?.()) ? `${p.socket} is not a socket of yours` : "");
  if (bad) {
    throw new CarrelError("socket_not_ours", `the daemon's socket ${p.socket} cannot be trusted, and nothing was sent to it`, bad,
      "find out who made it, remove it, and try again; or set CARREL_HOME to a folder of your own");
  }
  return st !== undefined;
}
