import { setTimeout as sleep } from "node:timers/promises";
import { countedMoves, type CountedMove } from "./counted.js";
import type { ExternalLab, Flip, FlipOptions } from "./external.js";
import type { TrafficWindow } from "./traffic.js";

/** For what was sent last to arrive. */
const ARRIVAL_MS = 200;

/** What is counted around one move, whoever counts it. */
export type CountedWindow = Omit<TrafficWindow, "type" | "from" | "to" | "serviceGapUpAt" | "serviceGapDownAt" | "tcpStallUpAt" | "tcpStallDownAt" | "bulkUpBytes" | "bulkDownBytes" | "senderLateMs"> & {
  /** Of a flip: so long the VM had no cable, whoever moved its packets. */
  readonly cutMs?: number;
};

export interface FlipSeries extends FlipOptions {
  readonly flips: number;
  /** Numbered packets per second. */
  readonly pps: number;
  /** Traffic that is counted before and after each flip. */
  readonly marginMs: number;
  /** Whatever moves the VM tells the agents: `leave` beforehand, `arrive` afterwards. */
  readonly hooks?: boolean;
  /** With `linger`: the port that the VM has left is removed so long after it. */
  readonly cleanUpMs?: number;
  /** As `CountedSeries.shared`. */
  readonly shared?: boolean;
}

export interface FlipsCounted {
  readonly windows: readonly CountedWindow[];
  /** Every session, the idle one included. */
  readonly survived: boolean;
}

/** Ends when the VM is bound where its cable is. */
async function flipOnce(lab: ExternalLab, series: FlipSeries): Promise<Flip> {
  const [from, to] = [lab.at, lab.other];
  if (series.hooks === true && from !== null) await lab.tell(from, "leave");
  const flip = await lab.flip(to, series);
  if (series.hooks === true) await lab.tell(to, "arrive");
  if (series.cleanUpMs !== undefined && from !== null) {
    await sleep(series.cleanUpMs);
    await lab.cleanUp(from);
  }
  await lab.boundAt(to);
  return flip;
}

type Say = (window: CountedWindow) => void;

function ofFlip({ move, window }: CountedMove<Flip>): CountedWindow {
  return { ...window, cutMs: move.cutMs };
}

/** The cable to and fro with numbered packets both ways and TCP sessions. */
export async function flipsUnderTraffic(lab: ExternalLab, series: FlipSeries, say: Say = () => undefined): Promise<FlipsCounted> {
  await lab.serve();
  const traffic = await lab.lab.traffic({ pps: series.pps, bulkMbit: 0 });
  try {
    const counted = await countedMoves(traffic, { moves: series.flips, marginMs: series.marginMs, arrivalMs: ARRIVAL_MS, shared: series.shared ?? false }, () => flipOnce(lab, series), (one) => { say(ofFlip(one)); });
    await traffic.idle();
    return { windows: counted.map(ofFlip), survived: (await traffic.quit()).survived && traffic.broken.length === 0 };
  } finally {
    traffic.kill();
  }
}

/** The same with a VM that never says a word: numbered packets down only, counted in the VM, and nothing but its cable to go by. */
export async function flipsOfASilentVm(lab: ExternalLab, series: FlipSeries, say: Say = () => undefined): Promise<readonly CountedWindow[]> {
  const silent = await lab.silent(series.pps);
  const windows: CountedWindow[] = [];
  for (let n = 0; n < series.flips; n++) {
    const to = lab.other;
    await silent.look();
    const t0 = performance.now();
    await sleep(series.marginMs);
    const { cutMs } = await lab.flip(to, series);
    await sleep(series.marginMs);
    const t1 = performance.now();
    const { received, lost, duplicated, reordered, longestMs } = await silent.look();
    const window: CountedWindow = {
      t0, t1, sentDown: received + lost, receivedDown: received, duplicatedDown: duplicated, reorderedDown: reordered,
      sentUp: 0, receivedUp: 0, duplicatedUp: 0, reorderedUp: 0, guestRefused: 0, serviceGapDownMs: Math.max(0, longestMs - 1000 / series.pps), serviceGapUpMs: null,
      tcpStallDownMs: null, tcpStallUpMs: null, cutMs,
    };
    await lab.boundAt(to);
    windows.push(window);
    say(window);
  }
  await silent.end();
  return windows;
}
