import { isIPv6 } from "node:net";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  EgressAction, EgressAnswer, EgressEventKind, FileType, PutRequestSchema,
  type Change, type EgressEvent, type FileInfo, type Guest as Message, type ReviewSummary,
} from "./gen/carrel/v1/carrel_pb.js";
import type { Services } from "./index.js";
import { CarrelError, wrap } from "./error.js";
import { check, Task, type Result } from "./task.js";

/** How a command runs. */
export interface TaskOptions {
  /** An absolute folder in the guest; without it, the first share's. */
  cwd?: string;
  /** Variables, added to the guest's own. */
  env?: Record<string, string>;
  /** USER or USER:GROUP in the guest. */
  user?: string;
  /** Text or bytes for its input, or "pipe" to write them later; without it, there is none. */
  stdin?: string | Uint8Array | "pipe";
  /** Milliseconds after which it is killed. */
  timeout?: number;
  /** Its end kills the task. */
  signal?: AbortSignal;
  /** Where as many tasks run in the guest as may, waits for a place, in turns with others, until signal ends it. */
  queue?: boolean;
  /** How many bytes of each output the result keeps, from the beginning; 16 MiB without it. */
  maxOutput?: number;
}

/** A question whether a connection may be made. Its words are the guest's in part. */
export interface Question {
  host: string;
  port: number;
  task: string;
  /** The answer: this connection only, as long as the guest exists, or no. */
  answer(a: "once" | "guest" | "deny"): Promise<void>;
}

/** One guest that runs. */
export class Guest implements AsyncDisposable {
  #lease: Task | undefined;
  #leased: Promise<unknown> | undefined;

  constructor(private readonly s: Services, readonly message: Message) {}

  get name(): string {
    return this.message.name;
  }

  /** Where commands run that are not told: the first share. */
  get cwd(): string {
    const first = this.message.spec?.shares[0];
    return first ? first.guestPath || first.path : "";
  }

  /** @internal Holds the guest for this process: it ends with it. */
  async hold(): Promise<void> {
    this.#lease = await this.start(["/bin/sh", "-c", "read -r _; exit 0"], { cwd: "/", stdin: "pipe" });
    this.#leased = this.#lease.wait().catch(() => undefined);
  }

  /** Starts a command. */
  async start(args: string[], o: TaskOptions = {}): Promise<Task> {
    const op = `start a task in guest ${this.name}`;
    o.signal?.throwIfAborted();
    if (!args[0]) throw new CarrelError("bad_request", "there is no command to run");
    try {
      const res = await this.s.tasks.start({
        guest: this.name,
        spec: {
          argv: args, env: Object.entries(o.env ?? {}).map(([k, v]) => `${k}=${v}`), workdir: o.cwd ?? this.cwd, user: o.user ?? "",
          stdin: o.stdin !== undefined, timeoutNanos: BigInt(Math.round((o.timeout ?? 0) * 1e6)),
        },
        idempotencyKey: crypto.randomUUID(), // with it, asking again after a broken answer is safe
        wait: o.queue ?? false,
      }, o.signal ? { signal: o.signal } : {});
      if (!res.task?.id) throw new CarrelError("truncated", op, "the daemon did not say which task it started");
      const t = new Task(this.s.tasks, this.s.again, this.name, res.task.id, o.maxOutput ?? 16 << 20, o.signal);
      if (o.stdin !== undefined && o.stdin !== "pipe") {
        t.write(o.stdin);
        t.closeInput();
      }
      return t;
    } catch (err) {
      throw wrap(op, err);
    }
  }

  /** Runs a command and returns how it ended, whatever that is. */
  async run(args: string[], o: TaskOptions = {}): Promise<Result> {
    return await (await this.start(args, o)).wait();
  }

  /** Runs a command and throws an ExitError unless it ends with status 0. */
  async must(args: string[], o: TaskOptions = {}): Promise<Result> {
    return check(await this.run(args, o));
  }

  /** Reads a file of the guest, of at most maxBytes (64 MiB). */
  async readFile(path: string, o: { user?: string; maxBytes?: number } = {}): Promise<Uint8Array> {
    const most = o.maxBytes ?? 64 << 20;
    const parts: Uint8Array[] = [];
    let n = 0;
    try {
      for (;;) {
        const res = await this.s.files.read({ guest: this.name, path: this.#at(path), user: o.user ?? "", offset: BigInt(n), maxBytes: 1n << 18n });
        if (res.data.length === 0) return Buffer.concat(parts);
        n += res.data.length;
        if (n > most) throw new CarrelError("too_large", `read ${path}`, `it has more than ${most} bytes`);
        parts.push(res.data);
      }
    } catch (err) {
      throw wrap(`read ${path} in guest ${this.name}`, err);
    }
  }

  /** Lists a folder of the guest. */
  async readdir(path: string, o: { user?: string } = {}): Promise<FileInfo[]> {
    try {
      const res = await this.s.files.list({ guest: this.name, path: this.#at(path), user: o.user ?? "" });
      if (res.self?.type !== FileType.DIRECTORY) throw new CarrelError("not_a_folder", `list ${path}`, "it is not a folder");
      if (res.leftOut > 0) throw new CarrelError("too_large", `list ${path}`, `${res.leftOut} entries were left out`);
      return res.entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    } catch (err) {
      throw wrap(`list ${path} in guest ${this.name}`, err);
    }
  }

  /** Writes a file of the guest, in place of what has its name. Its folder is made if it is missing. */
  async writeFile(path: string, data: string | Uint8Array, o: { user?: string; mode?: number } = {}): Promise<void> {
    const at = this.#at(path);
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    const cut = at.lastIndexOf("/");
    const { name } = this;
    async function* messages() {
      const message = (kind: MessageInitShape<typeof PutRequestSchema>["kind"]) => create(PutRequestSchema, { kind: kind! });
      yield message({ case: "open", value: { guest: name, path: at.slice(0, cut) || "/", user: o.user ?? "", mkdir: true } });
      yield message({ case: "file", value: { name: at.slice(cut + 1), type: FileType.REGULAR, mode: o.mode ?? 0o644, size: BigInt(bytes.length) } });
      for (let i = 0; i < bytes.length; i += 1 << 18) yield message({ case: "data", value: bytes.subarray(i, i + (1 << 18)) });
    }
    try {
      await this.s.files.put(messages());
    } catch (err) {
      throw wrap(`write ${path} in guest ${this.name}`, err);
    }
  }

  #at(path: string): string {
    if (path.startsWith("/")) return path;
    if (!this.cwd) throw new CarrelError("bad_path", `"${path}" is not an absolute path in the guest`);
    return `${this.cwd}/${path}`;
  }

  /** What the guest has changed in its review shares. All of it is the guest's word. */
  async diff(o: { paths?: string[]; noText?: boolean; signal?: AbortSignal } = {}): Promise<Change[]> {
    const out: Change[] = [];
    try {
      for await (const c of this.s.reviews.diff({ guest: this.name, paths: o.paths ?? [], noText: o.noText ?? false }, o.signal ? { signal: o.signal } : {})) out.push(c);
    } catch (err) {
      throw wrap(`show what guest ${this.name} has changed`, err);
    }
    return out;
  }

  /**
   * Brings changes into the host's folders: exactly those that were looked at,
   * and nothing that came since. `acceptWarnings` takes also what programs of the
   * host run or obey; a person should have seen it. It returns what was left, and why.
   */
  async apply(changes: Change[], o: { acceptWarnings?: boolean; overwrite?: boolean } = {}): Promise<{ applied: string[]; left: { path: string; why: string }[] }> {
    const out = { applied: [] as string[], left: [] as { path: string; why: string }[] };
    if (changes.length === 0) return out;
    try {
      const req = { guest: this.name, seen: Buffer.concat(changes.map((c) => c.seen)), acceptWarnings: o.acceptWarnings ?? false, overwrite: o.overwrite ?? false };
      for await (const ev of this.s.reviews.apply(req)) {
        if (ev.refused) out.left.push({ path: ev.path, why: ev.refused });
        else out.applied.push(ev.path);
      }
    } catch (err) {
      throw wrap(`apply what guest ${this.name} has changed`, err);
    }
    return out;
  }

  /** Throws changes away; without paths, all. It cannot be undone. */
  async discard(paths: string[] = []): Promise<number> {
    try {
      return (await this.s.reviews.discard({ guest: this.name, paths })).discarded;
    } catch (err) {
      throw wrap(`discard what guest ${this.name} has changed`, err);
    }
  }

  /** Counts what waits for review. */
  async summary(): Promise<ReviewSummary> {
    try {
      return await this.s.reviews.summary({ guest: this.name });
    } catch (err) {
      throw wrap(`count what guest ${this.name} has changed`, err);
    }
  }

  /** Lets the guest reach HOST or HOST:PORT (443), for as long as it exists; ask = true: after a question. */
  async allow(host: string, o: { ask?: boolean } = {}): Promise<void> {
    try {
      await this.s.egress.change({ guest: this.name, add: [hostRule(host, o.ask ? EgressAction.ASK : EgressAction.ALLOW)] });
    } catch (err) {
      throw wrap(`let guest ${this.name} reach ${host}`, err);
    }
  }

  /** The guest's verdicts, the last ones first, then new ones until the signal. */
  async *verdicts(signal: AbortSignal, last = 0): AsyncGenerator<EgressEvent> {
    try {
      yield* this.s.egress.watch({ guest: this.name, follow: true, last }, { signal });
    } catch (err) {
      if (!signal.aborted) throw wrap(`watch what guest ${this.name} reaches`, err);
    }
  }

  /** The questions that rules with "ask" raise, until the signal. A connection is held until its answer. */
  async *questions(signal: AbortSignal): AsyncGenerator<Question> {
    for await (const ev of this.verdicts(signal)) {
      if (ev.kind !== EgressEventKind.QUESTION) continue;
      yield {
        host: ev.host, port: ev.port, task: ev.task,
        answer: async (a) => {
          const answer = { once: EgressAnswer.ONCE, guest: EgressAnswer.GUEST, deny: EgressAnswer.DENY }[a];
          try {
            await this.s.egress.answer({ guest: this.name, question: ev.question, answer });
          } catch (err) {
            throw wrap(`answer about ${ev.host}:${ev.port}`, err);
          }
        },
      };
    }
  }

  /** Opens a port of the host's loopback into the guest, and returns which. */
  async publish(guestPort: number, hostPort = 0): Promise<number> {
    try {
      const idempotencyKey = crypto.randomUUID(); // with it, asking again after a broken answer is safe
      return (await this.s.egress.publish({ guest: this.name, port: { guestPort, hostPort }, idempotencyKey })).port?.hostPort ?? 0;
    } catch (err) {
      throw wrap(`open a port into guest ${this.name}`, err);
    }
  }

  /** Ends the guest. One that was made without a name is then removed, or kept under its name if changes wait for review. */
  async close(): Promise<void> {
    if (!this.#lease) return;
    this.#lease.closeInput();
    await this.#leased;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** A rule of HOST, HOST:PORT or [ADDRESS]:PORT. The daemon checks the host itself. */
export function hostRule(s: string, action: EgressAction): { action: EgressAction; host: string; ports: number[] } {
  const m = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(s) ?? /^([^:/@\s[\]]+)(?::(\d{1,5}))?$/.exec(s) ?? (isIPv6(s) ? [s, s] : null);
  const host = m?.[1] ?? "";
  const port = m?.[2] === undefined ? 443 : Number(m[2]);
  if (!m || port < 1 || port > 65535) {
    throw new CarrelError("bad_host", `"${s}" is not HOST or HOST:PORT`, "", 'example.org, example.org:8443, "*.example.org" or [2001:db8::1]:443');
  }
  return { action, host, ports: [port] };
}
