import { setTimeout as sleep } from "node:timers/promises";
import type { Where } from "../../deploy/lab/lab.js";
import { HOSTS, type HostName } from "../../deploy/lab/plan.js";
import { INJURIES, type Victim } from "./injuries.js";
import { leftOver } from "./left-over.js";
import { isSlow, type Cell, type Ending, type Phase } from "./matrix.js";
import { Operator, type Answer } from "./operator.js";
import { VM, type Stage } from "./stage.js";

/** The other messages of the moment arrive, then what was held goes on. */
const STANDSTILL_MS = 300;
/** None of these is about speed. */
const REACH_LIMIT_MS = 60_000;
const CONNECT_LIMIT_MS = 60_000;
const OPERATOR_LIMIT_MS = 120_000;
const SETTLE_LIMIT_MS = 90_000;
/** Grace times, stragglers, revocations that are asked again. */
const CLEAN_LIMIT_MS = 60_000;
/** For the witness to hear what the binding says already. */
const SEE_LIMIT_MS = 10_000;
/** A binding that is LOST with every part back for so long does not come back by itself: a person resolves it. */
const LOST_PATIENCE_MS = 5000;

export interface Outcome {
  readonly cell: Cell;
  readonly ending: Ending | null;
  /** It was LOST meanwhile, and came back by a host's word or by `careof resolve`. */
  readonly lost: "no" | "came back" | "resolved";
  readonly answer: Answer | null;
  /** Longest silence that the correspondent saw, in ms; `null` where the guest died. */
  readonly silentMs: number | null;
  readonly tookMs: number;
  /** Nothing, or why it failed. */
  readonly problems: readonly string[];
}

/** One fault at one phase, from a whole lab to a whole lab. What it demands is said in the checks below, one by one. */
export async function runCell(stage: Stage, cell: Cell): Promise<Outcome> {
  const began = Date.now();
  const problems: string[] = [];
  const outcome = { ending: null as Ending | null, lost: "no" as Outcome["lost"], answer: null as Answer | null, silentMs: null as number | null };
  try {
    await play(stage, cell, outcome, problems);
  } catch (thrown) {
    problems.push(thrown instanceof Error ? thrown.message : String(thrown));
  } finally {
    stage.letGo(cell.phase);
  }
  return { cell, ...outcome, tookMs: Date.now() - began, problems };
}

async function play(stage: Stage, cell: Cell, outcome: { -readonly [Key in "ending" | "lost" | "answer" | "silentMs"]: Outcome[Key] }, problems: string[]): Promise<void> {
  const { where, from, to } = await stage.ready();
  const { lab, witness, traffic } = stage;
  const injury = INJURIES[cell.fault];
  await stage.useBandwidth(cell.phase);
  if (!isSlow(cell.phase)) stage.hold(cell.phase);
  const logs = { home: stage.logSize("home-agent"), from: stage.logSize(from), to: stage.logSize(to) };
  await traffic.mark(`${cell.fault}.${cell.phase}.before`);
  const operator = new Operator(lab, VM, to, cell.phase === "postcopy" ? ["--postcopy", "--timeout", "1"] : []);
  const victim: Victim = { stage, from, to, operator };
  await reached(stage, cell.phase, operator, { from, to, logs });

  await injury.strike(victim);
  const struck = Date.now();
  await sleep(STANDSTILL_MS);
  stage.letGo(cell.phase);
  await sleep(Math.max(0, struck + injury.healMinMs - Date.now()));
  await operator.within(Math.max(1, struck + injury.healMaxMs - Date.now()));
  const lostAtHeal = operator.over && (await lab.careof(["where", VM, "--output", "json"])).stdout.includes('"lost"');
  if (lostAtHeal && cell.fault === "target-agent" && (cell.phase === "release" || cell.phase === "grant")) {
    // Its host does not come back: the way out is a person's word.
    const resolved = await lab.careof(["resolve", VM, from]);
    if (resolved.code !== 0) problems.push(`careof resolve ended with ${String(resolved.code)}: ${resolved.stderr.trim()}`);
    outcome.lost = "resolved";
    await lab.until("the guest runs again where it was resolved to", SETTLE_LIMIT_MS, () => Promise.resolve(witness.running().join() === from));
  }
  await injury.heal(victim);
  await lab.connected(HOSTS, CONNECT_LIMIT_MS);
  const answer = await operator.within(OPERATOR_LIMIT_MS);
  outcome.answer = answer;
  if (answer === null) operator.kill();

  const end = await settled(stage, from, outcome);
  const host = HOSTS.find((each) => each === end.host) ?? null;
  outcome.ending = host === null ? "dies" : host === from ? "stays" : "moves";
  problems.push(...judgeEnding(cell, outcome.ending), ...judgeBinding(end, where, host, outcome.ending));
  problems.push(...judgeAnswer(answer, outcome, from, to));
  if (outcome.lost !== "no" && !stage.logSince("home-agent", logs.home).includes('"alarm":"lost"')) problems.push("LOST without an alarm");
  if (host === null && !stage.logSince("home-agent", logs.home).includes('"alarm":"guest-died"')) problems.push("the guest died without an alarm");

  if (host !== null) {
    problems.push(...(await judgeTraffic(stage, `${cell.fault}.${cell.phase}`, outcome)));
  }
  await clean(stage, host, problems);
  const doubles = witness.doubles();
  if (doubles.length > 0) problems.push(`the guest ran on two hosts at once: ${JSON.stringify(doubles)}`);
  const running = await seen(witness, host);
  if (running.join() !== (host ?? "")) problems.push(`it runs on ${running.join(" and ") || "no host"}, and the binding says ${host ?? "none"}`);
  if (host === null) stage.dropTraffic();
}

/** Where the guest runs, when the witness has had time to see that it does so at `host` alone. */
async function seen(witness: Stage["witness"], host: HostName | null): Promise<readonly HostName[]> {
  const end = Date.now() + SEE_LIMIT_MS;
  while (witness.running().join() !== (host ?? "") && Date.now() < end) await sleep(50);
  return witness.running();
}

/** Waits until the agents stand still at the point, or a third of the slow copy is done. */
async function reached(stage: Stage, phase: Phase, operator: Operator, at: { readonly from: HostName; readonly to: HostName; readonly logs: { readonly from: number; readonly to: number } }): Promise<void> {
  const { lab } = stage;
  const said = `"hold":"${phase}","msg":"standing still"`;
  await lab.until(`the migration reaches "${phase}"`, REACH_LIMIT_MS, async () => {
    if (operator.over) throw new Error(`the migration was over before "${phase}": ${JSON.stringify(await operator.ended)}`);
    if (!isSlow(phase)) return stage.logSince(at.from, at.logs.from).includes(said) || stage.logSince(at.to, at.logs.to).includes(said);
    const { body } = await lab.http("GET", "/v1/migrations");
    return Array.isArray(body) && body.some((each: unknown) => JSON.stringify(each).includes(`"phase":"${phase}"`) && JSON.stringify(each).includes('"result":null'));
  });
  if (phase === "copy") await sleep(1000);
}

/** Waits for a final state; a binding that stays LOST with all parts there is resolved as a person would. */
async function settled(stage: Stage, from: HostName, outcome: { lost: Outcome["lost"] }): Promise<Where> {
  const { lab, witness } = stage;
  let last = await lab.where();
  let lostSince: number | null = null;
  await lab.until("the binding has settled", SETTLE_LIMIT_MS, async () => {
    last = await lab.where();
    if (last.state === "lost") {
      if (outcome.lost === "no") outcome.lost = "came back";
      lostSince ??= Date.now();
      if (Date.now() - lostSince > LOST_PATIENCE_MS) {
        outcome.lost = "resolved";
        await lab.careof(["resolve", VM, witness.running()[0] ?? from]);
        lostSince = Date.now();
      }
      return false;
    }
    const over = last.state === "bound" ? witness.running().join() === last.host : last.state === "expired" && last.host === null;
    return over && !JSON.stringify((await lab.http("GET", "/v1/migrations")).body).includes('"result":null');
  });
  return last;
}

/** The sessions that were open before the fault carry on, and the longest silence is known. */
async function judgeTraffic({ traffic }: Stage, name: string, outcome: { silentMs: number | null }): Promise<string[]> {
  const wrong: string[] = [];
  try {
    await traffic.idle();
    await traffic.mark(`${name}.after`);
    await sleep(400);
    const window = await traffic.window(`${name}.before`, `${name}.after`);
    outcome.silentMs = Math.max(window.serviceGapUpMs ?? 0, window.serviceGapDownMs ?? 0);
  } catch (thrown) {
    wrong.push(`its TCP sessions are dead: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
  }
  if (traffic.broken.length > 0) wrong.push(`broken sessions: ${traffic.broken.map(({ session, error }) => `${session}: ${error}`).join("; ")}`);
  return wrong;
}

function judgeEnding(cell: Cell, ending: Ending): string[] {
  return cell.endings.includes(ending) ? [] : [`it ${ending}; right would be: ${cell.endings.join(" or ")}`];
}

function judgeBinding(end: Where, before: Where, host: HostName | null, ending: Ending): string[] {
  if (host === null) return [];
  const right = ending === "moves" ? before.epoch + 1 : before.epoch + 2;
  return end.epoch >= right ? [] : [`epoch ${String(end.epoch)} after ${String(before.epoch)}: it ${ending}, so at least ${String(right)}`];
}

/** Exit code 0 means that it moved, every other comes with a result or an error and its reason. */
function judgeAnswer(answer: Answer | null, outcome: { ending: Ending | null; lost: Outcome["lost"] }, from: HostName, to: HostName): string[] {
  if (answer === null) return ["the operator got no answer"];
  const { code, move, said } = answer;
  if (move === null) return code === 1 && said !== "" ? [`the operator got no result, only: ${said}`] : [`exit code ${String(code)} without a result: ${said}`];
  const wrong: string[] = [];
  if (move.from !== from || move.to !== to) wrong.push(`the answer speaks of a move from ${move.from} to ${move.to}`);
  if ((code === 0) !== (move.result === "completed") || (code !== 0 && code !== 1)) wrong.push(`exit code ${String(code)} for "${move.result}"`);
  if ((move.reason === "accepted") !== (move.result === "completed")) wrong.push(`"${move.result}" for the reason "${move.reason}"`);
  if (move.result === "completed" && outcome.ending === "stays") wrong.push("the operator was told that it moved");
  if ((move.result === "failed" || move.result === "cancelled") && outcome.ending === "moves") wrong.push(`the operator was told that it did not move (${move.reason})`);
  // Known to be dead: that is no binding which is LOST.
  if (move.result === "lost" && move.reason !== "postcopy-broken" && outcome.lost === "no") outcome.lost = "came back";
  return wrong;
}

async function clean(stage: Stage, host: HostName | null, problems: string[]): Promise<void> {
  const end = Date.now() + CLEAN_LIMIT_MS;
  for (;;) {
    const left = await leftOver(stage.lab, host);
    if (left.length === 0) return;
    if (Date.now() > end) {
      problems.push(...left);
      return;
    }
    await sleep(300);
  }
}
