import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { inNamespace } from "../../deploy/lab/command.js";
import { Traffic, trafficProgram } from "../../deploy/lab/traffic.js";
import { ipv4 } from "../../model/address.js";
import { FIRST_HOME } from "../dataplane/network.js";
import { boundAt, type TwoHosts } from "./two-hosts.js";

/** Between two re-points, at least. */
const BETWEEN_MS = 2;
/** For what was sent last to arrive. */
const ARRIVAL_MS = 500;
const READY_MS = 20_000;

/** Numbered packets while one binding is re-pointed again and again. */
export interface UnderLoad {
  readonly repoints: number;
  readonly pps: number;
  readonly sentDown: number;
  readonly lostDown: number;
  readonly sentUp: number;
  readonly lostUp: number;
  readonly duplicated: number;
  readonly reordered: number;
}

export async function underLoad(two: TwoHosts, repoints: number, pps: number): Promise<UnderLoad> {
  const home = ipv4(FIRST_HOME);
  const tunnel = two.home(16);
  const program = await trafficProgram();
  const [command = "", ...words] = inNamespace(two.network.guest, [program, "serve"]);
  const serving = spawn(command, words, { stdio: "ignore", detached: true });
  let traffic: Traffic | null = null;
  try {
    await two.inHome(() => tunnel.set([boundAt(home, 0)]));
    traffic = new Traffic({ program, namespace: two.network.name("c"), to: home, pps, bulkMbit: 0, waitS: 10 });
    await traffic.ready(READY_MS);
    await traffic.mark("from");
    for (let turn = 0; turn < repoints; turn++) {
      tunnel.put(boundAt(home, turn % 2 === 0 ? 1 : 0));
      await sleep(BETWEEN_MS);
    }
    await traffic.mark("to");
    await sleep(ARRIVAL_MS);
    const counted = await traffic.window("from", "to");
    return {
      repoints, pps, sentDown: counted.sentDown, lostDown: counted.sentDown - counted.receivedDown, sentUp: counted.sentUp, lostUp: counted.sentUp - counted.receivedUp,
      duplicated: counted.duplicatedDown + counted.duplicatedUp, reordered: counted.reorderedDown + counted.reorderedUp,
    };
  } finally {
    traffic?.kill();
    serving.kill("SIGKILL");
    await two.inHome(() => tunnel.close({ keep: false }));
  }
}
