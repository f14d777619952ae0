import { create } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { AttachRequestSchema, TaskState, type AttachRequest, type AttachResponse, type Task as Message, type TaskService } from "./gen/carrel/v1/carrel_pb.js";
import { CarrelError, ExitError, isAbort, isBroken, wrap } from "./error.js";

/** How a task ended. */
export interface Result {
  /** What a shell would show: the task's own status, 128+n for a signal, 124 after its timeout, 125 if it was interrupted, 126 or 127 if it could not be started. */
  status: number;
  /** Linux's number of the signal that ended it, or 0. */
  signal: number;
  timedOut: boolean;
  /** The guest's kernel killed it for lack of memory. */
  oom: boolean;
  /** Why it was interrupted or could not be started; or "". */
  why: string;
  stdout: string;
  stderr: string;
  /** Bytes of output that were not kept in stdout and stderr. */
  dropped: number;
}

/** A piece of a task's output. Bytes are the guest's word, as they came. */
export interface Output {
  stream: "stdout" | "stderr";
  data: Uint8Array;
}

/** How often a broken stream is taken up again without a byte of progress. */
const maxTries = 5;

/** A command that runs in a guest. Iterate it for its output, or wait for its result. */
export class Task implements AsyncIterable<Output> {
  #queue: AttachRequest[] = [];
  #wake: (() => void) | undefined;
  #next = 0n;
  #end: Message | undefined;
  #iterated = false;
  #wrote = false;
  /** Output beyond so many bytes per stream is counted and dropped by wait(). */
  #keep: number;

  constructor(
    private readonly tasks: Client<typeof TaskService>,
    private readonly again: () => Promise<void>,
    readonly guest: string,
    readonly id: string,
    keep: number,
    private readonly signal?: AbortSignal,
  ) {
    this.#keep = keep;
  }

  /** Writes to the task's input, which it must have been given (`stdin: "pipe"`). */
  write(data: Uint8Array | string): void {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    for (let at = 0; at < bytes.length; at += 1 << 18) {
      this.#send({ case: "stdin", value: bytes.subarray(at, at + (1 << 18)) });
    }
  }

  /** Ends the task's input. */
  closeInput(): void {
    this.#send({ case: "stdinClose", value: {} });
  }

  /** Sends a signal, by Linux's number, to the task's process group. */
  kill(signal = 15): void {
    this.#send({ case: "signal", value: signal });
  }

  #send(kind: Parameters<typeof create<typeof AttachRequestSchema>>[1] extends infer T ? (T extends { kind?: infer K } ? K : never) : never): void {
    this.#queue.push(create(AttachRequestSchema, { kind } as never));
    this.#wake?.();
  }

  async *#requests(over: AbortSignal): AsyncGenerator<AttachRequest> {
    yield create(AttachRequestSchema, { kind: { case: "open", value: { guest: this.guest, task: this.id, offset: this.#next, input: true } } });
    while (!over.aborted) {
      const m = this.#queue.shift();
      if (m) {
        if (m.kind.case === "stdin") this.#wrote = true;
        yield m;
        continue;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        if (over.aborted) resolve();
        over.addEventListener("abort", () => resolve(), { once: true });
      });
    }
  }

  /** The task's output, as it comes. A reader that is slow holds the task up. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Output> {
    if (this.#iterated) throw new Error("a task's output is read once");
    this.#iterated = true;
    const op = `follow task ${this.id} in guest ${this.guest}`;
    const kill = () => this.kill(9);
    if (this.signal?.aborted) kill();
    this.signal?.addEventListener("abort", kill, { once: true });
    try {
      for (let tries = 0; ; tries++) {
        const before = this.#next;
        // The end of our side tells the keeper that the result has arrived, so it
        // comes after the task's end and not before.
        const over = new AbortController();
        try {
          for await (const m of this.tasks.attach(this.#requests(over.signal))) {
            const out = this.#take(m);
            if (out) yield out;
            if (m.next > this.#next) this.#next = m.next;
            if (this.#end) {
              over.abort();
            }
          }
          if (this.#end) return;
          throw new CarrelError("truncated", op, "the stream ended without the task's end");
        } catch (err) {
          if (this.#end) return; // what breaks after it is of no interest
          if (isAbort(err)) throw err;
          if (this.#next > before) tries = 0;
          if (!isBroken(err) || tries >= maxTries) throw wrap(op, err);
          if (this.#wrote) throw new CarrelError("input_lost", op, "the connection broke, and how much of the input the task has seen is unknown", "", err);
          await this.again();
        } finally {
          over.abort();
        }
      }
    } finally {
      this.signal?.removeEventListener("abort", kill);
    }
  }

  #take(m: AttachResponse): Output | undefined {
    switch (m.kind.case) {
      case "stdout":
      case "stderr":
        return { stream: m.kind.case, data: m.kind.value };
      case "end":
        this.#end = m.kind.value;
    }
    return undefined;
  }

  /**
   * Waits for the task's end, and collects what of its output was not read. It
   * rejects with the signal's reason if that ended the task.
   */
  async wait(): Promise<Result> {
    const kept = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] };
    const room = { stdout: this.#keep, stderr: this.#keep };
    let dropped = 0;
    if (!this.#iterated) {
      for await (const o of this) {
        const part = o.data.subarray(0, room[o.stream]);
        room[o.stream] -= part.length;
        dropped += o.data.length - part.length;
        if (part.length > 0) kept[o.stream].push(part);
      }
    }
    if (!this.#end) throw new CarrelError("truncated", `wait for task ${this.id}`, "its output was not read to its end");
    this.signal?.throwIfAborted();
    const text = (b: Uint8Array[]) => new TextDecoder().decode(Buffer.concat(b));
    const e = this.#end.ending;
    let status = e?.status ?? 125;
    const done = this.#end.state === TaskState.EXITED && e !== undefined;
    // A failure must not look like a success.
    if (!done || status < 0 || status > 255 || (status === 0 && (e.signal !== 0 || e.timedOut))) status = 125;
    return {
      status, signal: e?.signal ?? 0, timedOut: e?.timedOut ?? false, oom: e?.oom ?? false, why: e?.cause ?? "",
      stdout: text(kept.stdout), stderr: text(kept.stderr), dropped,
    };
  }
}

/** Throws unless r is a success. */
export function check(r: Result): Result {
  if (r.status === 0) return r;
  const what = r.timedOut ? "ended after its timeout" : r.oom ? "killed: out of memory" : r.signal ? `ended by signal ${r.signal}` : `exit status ${r.status}`;
  throw new ExitError(r, r.why ? `${what}: ${r.why}` : what);
}
