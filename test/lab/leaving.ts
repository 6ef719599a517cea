import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { inNamespace, must } from "../../deploy/lab/command.js";
import type { Lab } from "../../deploy/lab/lab.js";
import { PLAN, type HostName } from "../../deploy/lab/plan.js";

const LOOK_MS = 250;
const linkSchema = z.array(z.looseObject({ stats64: z.looseObject({ tx: z.looseObject({ bytes: z.number() }) }) })).length(1);

/** What has left a host by its uplink, as its kernel counts it: apart from everything that the product says. */
export interface Left {
  readonly bytes: number;
  /** Of each TCP connection to the other host that was ever seen, the most first. What was sent behind the last look is missing. */
  readonly connections: readonly number[];
}

/** While `run` lasts. */
export async function leaving<T>(lab: Lab, from: HostName, to: HostName, run: () => Promise<T>): Promise<{ readonly result: T; readonly left: Left }> {
  const namespace = lab.namespace(PLAN.hosts[from].node);
  const connections = new Map<string, number>();
  let over = false;
  const look = async (): Promise<void> => {
    while (!over) {
      for (const [name, bytes] of await connectionsOf(namespace, PLAN.hosts[to].careOf)) connections.set(name, bytes);
      await sleep(LOOK_MS);
    }
  };
  const before = await sentBytes(namespace);
  const [result] = await Promise.all([run().finally(() => { over = true; }), look()]);
  return { result, left: { bytes: await sentBytes(namespace) - before, connections: [...connections.values()].sort((a, b) => b - a) } };
}

async function sentBytes(namespace: string): Promise<number> {
  const [link] = linkSchema.parse(JSON.parse(await must(inNamespace(namespace, ["ip", "-json", "-statistics", "link", "show", "dev", "uplink0"]))));
  return link?.stats64.tx.bytes ?? 0;
}

/** Bytes sent, by the local end. */
async function connectionsOf(namespace: string, peer: string): Promise<ReadonlyMap<string, number>> {
  const said = await must(inNamespace(namespace, ["ss", "--tcp", "--info", "--numeric", "--no-header", "--oneline", "state", "established", "dst", peer]));
  return new Map([...said.matchAll(/^ *\d+ +\d+ +(\S+) .*\bbytes_sent:(\d+)/gm)].map(([, name = "", bytes]): [string, number] => [name, Number(bytes)]));
}
