/**
 * Runs untrusted work in Carrel's guests: microVMs that see only the folders they
 * were given and reach only the hosts that were allowed.
 *
 * ```ts
 * import { run, connect } from "@carrel-vm/client";
 * const r = await run(["npm", "test"], { shares: ["."], allow: ["registry.npmjs.org"] });
 * ```
 *
 * What comes out of a guest (output, names, contents, diffs) is the guest's word.
 */
import { createClient, type Client } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import * as net from "node:net";
import * as path from "node:path";
import {
  EgressAction, EgressService, FileService, GuestService, ReviewService, ShareMode, SystemService, TaskService, type Guest as Message,
} from "./gen/carrel/v1/carrel_pb.js";
import { ensureDaemon, type DaemonOptions } from "./daemon.js";
import { CarrelError, wrap } from "./error.js";
import { Guest, hostRule, type TaskOptions } from "./guest.js";
import { placeAt, type Place } from "./place.js";
import type { Result } from "./task.js";

export { CarrelError, ExitError } from "./error.js";
export { Guest, type Question, type TaskOptions } from "./guest.js";
export { check, Task, type Output, type Result } from "./task.js";
export type { Change, EgressEvent, FileInfo, ReviewSummary } from "./gen/carrel/v1/carrel_pb.js";

/** The version of the daemon's API that this package speaks. */
export const apiVersion = "carrel.v1";

export interface ConnectOptions extends DaemonOptions {
  /** Stands in for CARREL_HOME. */
  home?: string;
  signal?: AbortSignal;
}

/** A folder that a guest sees: its path (for review), or more about it. */
export type Share = string | { path: string; guestPath?: string; mode?: "review" | "ro" | "rw" | "rw-nodelete" };

/** What a guest is made of. Nothing is shared and nothing is reachable unless it says so. */
export interface GuestOptions {
  /** A guest with a name outlives this process. */
  name?: string;
  image?: string;
  cpus?: number;
  memoryMiB?: number;
  shares?: Share[];
  /** Hosts that it may reach: HOST or HOST:PORT (443). */
  allow?: string[];
  /** Hosts about which is asked (Guest.questions). */
  ask?: string[];
  presets?: string[];
  secrets?: string[];
  /** The wall; without it, the strongest that works here. */
  boundary?: "vm" | "gvisor" | "process";
  /** Told, in a line each, what a person may want to know. */
  onNotice?: (line: string) => void;
  signal?: AbortSignal;
}

/** @internal */
export interface Services {
  guests: Client<typeof GuestService>;
  tasks: Client<typeof TaskService>;
  files: Client<typeof FileService>;
  reviews: Client<typeof ReviewService>;
  egress: Client<typeof EgressService>;
  system: Client<typeof SystemService>;
  /** Looks for the daemon after a connection broke. */
  again: () => Promise<void>;
}

/** A connection to the user's daemon. It survives a restart of the daemon. */
export class Carrel implements Disposable {
  private constructor(readonly services: Services, readonly place: Place, private readonly session: Http2SessionManager) {}

  /** Finds the daemon, or starts it, and checks that it speaks this version of the API. */
  static async connect(o: ConnectOptions = {}): Promise<Carrel> {
    const place = placeAt(o.home);
    await ensureDaemon(place, o, o.signal);
    // No name is resolved: every connection goes to the socket.
    const session = new Http2SessionManager("http://carrel", {}, { createConnection: () => net.connect(place.socket) });
    const transport = createGrpcTransport({ baseUrl: "http://carrel", sessionManager: session, readMaxBytes: 16 << 20 });
    const make = <S extends Parameters<typeof createClient>[0]>(s: S) => createClient(s, transport);
    const c = new Carrel({
      guests: make(GuestService), tasks: make(TaskService), files: make(FileService), reviews: make(ReviewService), egress: make(EgressService),
      system: make(SystemService), again: () => ensureDaemon(place, o),
    }, place, session);
    try {
      const v = await c.services.system.version({}, { timeoutMs: 15_000 });
      if (v.api !== apiVersion) {
        throw new CarrelError("version_skew", "the running daemon is of another version", `it speaks "${v.api}", this package "${apiVersion}"`,
          "run `carrel daemon stop` and try again: the new daemon takes over the guests that run");
      }
    } catch (err) {
      c.close();
      throw wrap(`ask the daemon at ${place.socket} for its version`, err);
    }
    return c;
  }

  /** Starts a guest. Without a name it lives until close(), or a while after this process is gone. */
  async guest(o: GuestOptions = {}): Promise<Guest> {
    const modes = { review: ShareMode.REVIEW, ro: ShareMode.RO, rw: ShareMode.RW, "rw-nodelete": ShareMode.RW_NODELETE };
    const shares = (o.shares ?? []).map((s) => (typeof s === "string" ? { path: s } : s)).map((s) => ({
      path: path.resolve(s.path), guestPath: s.guestPath ?? "", mode: modes[s.mode ?? "review"],
    }));
    const rules = [
      ...(o.allow ?? []).map((h) => hostRule(h, EgressAction.ALLOW)),
      ...(o.ask ?? []).map((h) => hostRule(h, EgressAction.ASK)),
    ];
    const spec = {
      name: o.name ?? "", image: o.image ?? "", cpus: o.cpus ?? 0, memoryMib: o.memoryMiB ?? 0, boundary: o.boundary ?? "", shares,
      ephemeral: o.name === undefined, egress: { rules, presets: o.presets ?? [], secrets: o.secrets ?? [] },
    };
    let made: Message | undefined;
    try {
      for await (const ev of this.services.guests.start({ spec, onlyNew: o.name === undefined }, o.signal ? { signal: o.signal } : {})) {
        if (ev.kind.case === "notice") o.onNotice?.(ev.kind.value);
        if (ev.kind.case === "progress" && ev.kind.value.ahead > 0n) o.onNotice?.(`${ev.kind.value.stage} ${ev.kind.value.line}`);
        if (ev.kind.case === "guest") made = ev.kind.value;
      }
    } catch (err) {
      throw wrap("start the guest", err);
    }
    if (!made) throw new CarrelError("truncated", "start the guest", "the daemon's answer ended without the guest", "see `carrel ls`");
    const g = new Guest(this.services, made);
    if (o.name === undefined) await g.hold();
    return g;
  }

  /**
   * Runs one command in a fresh guest and returns how it ended. What it changed in
   * a share under review waits: `carrel diff`, `carrel apply`.
   */
  async run(args: string[], o: GuestOptions & TaskOptions = {}): Promise<Result & { guest: string }> {
    const g = await this.guest(o);
    try {
      return { ...(await g.run(args, o)), guest: g.name };
    } finally {
      await g.close();
    }
  }

  /** This user's guests. */
  async guests(): Promise<Message[]> {
    try {
      return (await this.services.guests.list({})).guests;
    } catch (err) {
      throw wrap("list guests", err);
    }
  }

  /** Waits until what becomes of a guest after its end is settled. */
  async settled(guest: string): Promise<void> {
    try {
      await this.services.guests.trace({ name: guest, ended: true });
    } catch (err) {
      const e = wrap(`wait for the end of guest ${guest}`, err);
      if ((e as CarrelError).code !== "not_found") throw e;
    }
  }

  /** Lets go of the daemon. It stops neither the daemon nor any guest with a name. */
  close(): void {
    this.session.abort();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Finds the daemon, or starts it. */
export function connect(o: ConnectOptions = {}): Promise<Carrel> {
  return Carrel.connect(o);
}

/** Runs one command in a fresh guest of the user's daemon. */
export async function run(args: string[], o: GuestOptions & TaskOptions & ConnectOptions = {}): Promise<Result & { guest: string }> {
  const c = await connect(o);
  try {
    return await c.run(args, o);
  } finally {
    c.close();
  }
}
