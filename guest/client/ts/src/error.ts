import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorDetailSchema } from "./gen/carrel/v1/carrel_pb.js";

/** What went wrong, why, and what would mend it. */
export class CarrelError extends Error {
  override readonly name: string = "CarrelError";
  /** A stable word: "not_found", "name_taken", "image_missing", ... */
  readonly code: string;
  /** Why it failed; may be empty. */
  readonly why: string;
  /** A sentence or a command; may be empty. */
  readonly cure: string;

  constructor(code: string, message: string, why = "", cure = "", cause?: unknown) {
    super([message, why].filter(Boolean).join(": ") + (cure ? ` (${cure})` : ""), { cause });
    this.code = code;
    this.why = why;
    this.cure = cure;
  }
}

/** A task that ended otherwise than with status 0. */
export class ExitError extends CarrelError {
  override readonly name = "ExitError";
  constructor(readonly result: { status: number; signal: number; timedOut: boolean; oom: boolean; stdout: string; stderr: string }, text: string) {
    super("exit", text);
  }
}

/** The error of an API call, with what the daemon said of it; `op` is what was tried. */
export function wrap(op: string, err: unknown): Error {
  if (err instanceof CarrelError) return err;
  if (isAbort(err)) return err as Error;
  const c = ConnectError.from(err);
  const d = c.findDetails(ErrorDetailSchema)[0];
  const code = d?.code || (Code[c.code] ?? "Failed").replace(/(?!^)[A-Z]/g, "_$&").toLowerCase();
  return new CarrelError(code, op, d?.cause || c.rawMessage, d?.cure ?? "", err);
}

/** Whether the way to the daemon broke, rather than that the daemon said no. */
export function isBroken(err: unknown): boolean {
  if (err instanceof CarrelError) return err.code === "truncated";
  const c = ConnectError.from(err);
  const codes = [Code.Unavailable, Code.Unknown, Code.Internal, Code.Canceled, Code.Aborted, Code.DataLoss];
  return c.findDetails(ErrorDetailSchema).length === 0 && codes.includes(c.code);
}

/** Whether err is the reason of an AbortSignal. */
export function isAbort(err: unknown): boolean {
  return err instanceof Error && (err.name === "AbortError" || err.name === "TimeoutError");
}
