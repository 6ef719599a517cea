import { setTimeout as sleep } from "node:timers/promises";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { qemuOf } from "./left-over.js";
import type { Fault } from "./matrix.js";
import type { Operator } from "./operator.js";
import type { Stage } from "./stage.js";

/** What is broken in the middle of a move. */
export interface Victim {
  readonly stage: Stage;
  readonly from: HostName;
  readonly to: HostName;
  readonly operator: Operator;
}

/**
 * `strike` breaks something; `heal` makes it whole, not before `healMinMs` and at the latest `healMaxMs` after the strike: in between as soon as the operator has
 * an answer.
 */
export interface Injury {
  readonly healMinMs: number;
  readonly healMaxMs: number;
  strike(victim: Victim): Promise<void>;
  heal(victim: Victim): Promise<void>;
}

const NONE = (): Promise<void> => Promise.resolve();

export const INJURIES: Readonly<Record<Fault, Injury>> = {
  "target-agent": { healMinMs: 1000, healMaxMs: 8000, strike: ({ stage, to }) => stage.lab.endPart(to, "SIGKILL"), heal: ({ stage, to }) => restart(stage, to) },
  "target-qemu": { healMinMs: 0, healMaxMs: 0, strike: ({ stage, to }) => killQemu(stage, to), heal: NONE },
  "source-agent": { healMinMs: 1000, healMaxMs: 1000, strike: ({ stage, from }) => stage.lab.endPart(from, "SIGKILL"), heal: ({ stage, from }) => restart(stage, from) },
  "source-qemu": { healMinMs: 0, healMaxMs: 0, strike: ({ stage, from }) => killQemu(stage, from), heal: NONE },
  "home-agent": { healMinMs: 1500, healMaxMs: 1500, strike: ({ stage }) => stage.lab.endPart("home-agent", "SIGKILL"), heal: ({ stage }) => restart(stage, "home-agent") },
  // The relay takes a silent path for dead after 8 s.
  "cut-hosts": cut(11_000, ({ from, to }) => [[PLAN.hosts[from].careOf, PLAN.hosts[to].careOf]]),
  "cut-source": cut(7000, ({ from }) => [[PLAN.hosts[from].careOf, PLAN.homeAgent.core]]),
  "cut-target": cut(7000, ({ to }) => [[PLAN.hosts[to].careOf, PLAN.homeAgent.core]]),
  "cut-both": cut(7000, () => HOSTS.map((host) => [PLAN.hosts[host].careOf, PLAN.homeAgent.core])),
  cancel: { healMinMs: 0, healMaxMs: 0, strike: ({ operator }) => { operator.interrupt(); return Promise.resolve(); }, heal: NONE },
};

/** Everything between two addresses is lost at the router, in both directions, as when a cable is pulled somewhere behind it. */
function cut(healMaxMs: number, pairs: (victim: Victim) => readonly (readonly [string, string])[]): Injury {
  const router = (stage: Stage, input: string): Promise<string> => must(inNamespace(stage.lab.namespace("r"), ["nft", "-f", "-"]), { input });
  return {
    healMinMs: 3000,
    healMaxMs,
    strike: async (victim) => {
      const rules = pairs(victim).flatMap(([one, other]) => [`ip saddr ${one} ip daddr ${other} drop`, `ip saddr ${other} ip daddr ${one} drop`]);
      await router(victim.stage, `table inet faults {\n chain forward {\n  type filter hook forward priority 0; policy accept;\n  ${rules.join("\n  ")}\n }\n}\n`);
    },
    heal: async ({ stage }) => { await router(stage, "delete table inet faults\n"); },
  };
}

async function killQemu(stage: Stage, host: HostName): Promise<void> {
  const pids = qemuOf(stage.lab, host);
  if (pids.length === 0) throw new Error(`there is no QEMU on ${host} to kill`);
  for (const pid of pids) process.kill(pid, "SIGKILL");
  await sleep(50);
}

function restart(stage: Stage, part: HostName | "home-agent"): Promise<void> {
  stage.lab.startPart(part);
  return Promise.resolve();
}
