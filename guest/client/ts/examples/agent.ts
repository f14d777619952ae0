// A whole agent on the TypeScript SDK: it mends a repository in a guest.
//
//   node dist/examples/agent.js FOLDER [WALL]
//
// A model says what to do next, the loop does it in the guest and tells the model
// what came of it. The person is asked whether the guest may reach a host, while
// it waits for that, and at the end whether what it changed may come into the
// folder. The model here is a script: put a real one in its place.
import { realpathSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { pathToFileURL } from "node:url";
import { CarrelError, connect, type Guest, type GuestOptions } from "../src/index.js";

export type Action = { run: string[] } | { read: string } | { write: string; content: string } | { done: true };
/** Says what to do next, by what came of the last thing. */
export type Model = (seen: string) => Action;
/** Whoever sits here. */
export interface Person {
  say(line: string): void;
  yes(question: string): Promise<boolean>;
}

/** The whole life of one piece of work. */
export async function mend(folder: string, model: Model, person: Person, o: GuestOptions = {}): Promise<void> {
  const carrel = await connect();
  try {
    // Every host is asked about; one that is not named is refused.
    const guest = await carrel.guest({ ...o, shares: [folder], ask: ["docs.example", "paste.example"] });
    const stop = new AbortController();
    const watching = answer(guest, person, stop.signal);
    try {
      await loop(guest, model, person);
      await review(guest, person);
    } finally {
      stop.abort();
      await watching;
      await guest.close();
    }
    await carrel.settled(guest.name);
  } finally {
    carrel.close();
  }
}

/** Answers while the guest works: a connection waits for it. */
async function answer(guest: Guest, person: Person, signal: AbortSignal): Promise<void> {
  for await (const q of guest.questions(signal)) {
    const yes = await person.yes(`May the guest reach ${JSON.stringify(q.host)}, port ${q.port}, once?`);
    try {
      await q.answer(yes ? "once" : "deny");
    } catch (err) {
      if (!(err instanceof CarrelError && err.code === "no_question")) throw err;
      person.say("  too late: nobody waits for this answer any more"); // it waits a minute; the guest was told no
    }
  }
}

/** A model may go round in circles. */
const maxSteps = 50;

async function loop(guest: Guest, model: Model, person: Person): Promise<void> {
  let seen = "Mend the repository so that its tests pass.";
  for (let i = 0; i < maxSteps; i++) {
    const act = model(seen);
    person.say(`* ${JSON.stringify("write" in act ? { write: act.write } : act)}`);
    if ("done" in act) return;
    try {
      if ("write" in act) {
        await guest.writeFile(act.write, act.content);
        seen = "written";
      } else if ("read" in act) {
        seen = new TextDecoder().decode(await guest.readFile(act.read, { maxBytes: 1 << 20 }));
      } else {
        const r = await guest.run(act.run, { maxOutput: 64 << 10 });
        seen = `status ${r.status}\n${r.stdout}${r.stderr}`;
        person.say(`  status ${r.status}`);
      }
    } catch (err) {
      if (!(err instanceof CarrelError)) throw err;
      seen = err.message; // the model may know what to do
    }
  }
  throw new Error("the model did not come to an end");
}

/** Shows what waits, asks, and applies exactly what was shown. */
async function review(guest: Guest, person: Person): Promise<void> {
  const all = await guest.diff();
  for (const c of all) person.say(`${JSON.stringify(c.path)}\n${c.diff.replace(/[^\n\t -~]/g, "?")}`);
  const shown = all.filter((c) => c.warning === ""); // what programs here obey stays in the guest
  if (shown.length === 0) return;
  if (!(await person.yes("Apply this?"))) {
    await guest.discard();
    return;
  }
  const { applied, left } = await guest.apply(shown);
  for (const p of applied) person.say(`applied: ${JSON.stringify(p)}`);
  for (const l of left) person.say(`left: ${JSON.stringify(l.path)}: ${l.why}`);
}

/** Stands in for a model. It looks at what it is told, as one would. */
export function script(): Model {
  let step = 0;
  return (seen) => {
    step++;
    const fails = seen.startsWith("status 1\n"), passes = seen.startsWith("status 0\n");
    if (step === 1) return { run: ["sh", "test.sh"] };
    if (step === 2 && fails) return { read: "sum.sh" };
    if (step === 3 && seen.includes("$1 - $2")) return { write: "sum.sh", content: seen.replaceAll("$1 - $2", "$1 + $2") };
    if (step === 4) return { run: ["sh", "-n", "sum.sh"] }; // its build
    if (step === 5 && passes) return { run: ["sh", "test.sh"] };
    if (step === 6 && passes) return { run: ["curl", "-sS", "https://docs.example/style"] };
    if (step === 7) return { run: ["curl", "-sS", "-d", "@sum.sh", "https://paste.example/"] };
    return { done: true };
  };
}

if (process.argv[1] && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  const [folder, boundary] = process.argv.slice(2);
  if (!folder) {
    console.error("usage: agent FOLDER [WALL]");
    process.exit(2);
  }
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const person: Person = { say: console.log, yes: async (q) => (await terminal.question(`${q} [y/N] `)).trim() === "y" };
  await mend(realpathSync(folder), script(), person, boundary ? { boundary: boundary as "process" } : {});
  terminal.close();
}
