import { setTimeout as sleep } from "node:timers/promises";
import { ipv4, prefix } from "../../../model/address.js";
import { openHomeTunnel, openHostTunnel } from "../../../net/data-plane.js";
import { HoldDevice } from "../../../net/hold.js";
import type { HomeEntry, HostEntry } from "../../../net/tunnel.js";
import { HELD, HOME_AGENT } from "./topology.js";

/*
 * A process that sets the entries of one end and then waits to be killed:
 *   holder.js home|host DRIVER RUNDIR ADDRESS ENTRIES (JSON) [busy]
 * Says {"ready"}. With `busy` it then changes them all the time, so that it is killed in the middle of that. A host's has a hold device beside, which goes with it.
 */
const [end, wanted, runDir = "", text = "", json = "[]", busy] = process.argv.slice(2);
const driver = wanted === "ipip" ? "ipip" : "bpf";
const address = ipv4(text);
setInterval(() => undefined, 60_000);

async function hold(set: (chosen: (index: number) => boolean) => Promise<void>): Promise<void> {
  await set(() => true);
  process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
  for (let turn = 0; busy === "busy"; turn++) {
    await set((index) => (index + turn) % 3 !== 0);
    await sleep(0);
  }
}

if (end === "home") {
  const { tunnel } = openHomeTunnel(driver, { uplink: "uplink", address, homePrefixes: [prefix("198.51.100.0/24")], runDir, maxEntries: 20_000 });
  const entries = JSON.parse(json) as readonly HomeEntry[];
  await hold((chosen) => tunnel.set(entries.filter((_, index) => chosen(index))));
} else {
  new HoldDevice(HELD, 100);
  const { tunnel } = openHostTunnel(driver, { uplink: "uplink", careOf: address, homeAgents: [HOME_AGENT], pathMtu: 0, runDir, maxEntries: 20_000 });
  const entries = JSON.parse(json) as readonly HostEntry[];
  await hold((chosen) => tunnel.set(entries.filter((_, index) => chosen(index))));
}
