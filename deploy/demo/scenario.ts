import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import type { Lab, Move } from "../lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../lab/plan.js";
import type { Traffic, TrafficSample } from "../lab/traffic.js";
import { DemoEnd } from "./ending.js";
import type { DemoOptions } from "./options.js";
import { demoMove, steadyAgain, type DemoMove, type DemoRecord, type Points } from "./record.js";
import { describeMachine } from "./machine.js";
import type { Screen } from "./screen.js";

/** Time for what was sent to arrive before it is counted. */
const ARRIVAL_MS = 500;

/** After a move, in which a guest that runs is heard again: less than every margin. */
const HEARD_MS = 1500;

const hostsSchema = z.array(z.looseObject({ name: z.string(), capabilities: z.looseObject({ qemuVersion: z.string(), accelerator: z.string(), dataPlane: z.string() }).nullable() }));

/** The whole play, on a lab that was made: parts, guest, traffic, there and back. `over` cuts its waits short when something went wrong elsewhere. */
export async function play(lab: Lab, options: DemoOptions, screen: Screen, over: AbortSignal): Promise<DemoRecord> {
  screen.phase("starting the home agent and two host agents");
  lab.startPart("home-agent");
  for (const host of HOSTS) lab.startPart(host);
  await lab.connected(HOSTS, 60_000);
  const capabilities = (await lab.json(hostsSchema, ["hosts"])).find((host) => host.capabilities !== null)?.capabilities;
  if (capabilities === undefined || capabilities === null) throw new CareofError("no-capabilities", "the home agent knows no host");
  const { qemuVersion, accelerator, dataPlane } = capabilities;
  screen.say(`home agent ${PLAN.homeAgent.core}, ${HOSTS.map((host) => `${host} ${PLAN.hosts[host].careOf}`).join(", ")}: connected`);
  screen.say(`QEMU ${qemuVersion}, ${accelerator === "kvm" ? "KVM" : "TCG: KVM does not boot a guest here, so every pause is longer than on a real host"}; data plane ${dataPlane}`);

  screen.phase(`starting ${PLAN.guest.name} on host-a`);
  await lab.startGuest("host-a");
  screen.phase("waiting for the guest to answer");
  const samples: TrafficSample[] = [];
  const traffic = await lab.traffic({
    pps: options.pps,
    bulkMbit: options.bulkMbit,
    onSample: (sample) => {
      samples.push(sample);
      screen.sample(sample);
    },
  });
  try {
    screen.say(`${PLAN.guest.name} answers at ${PLAN.guest.address}: TCP bulk ${String(options.bulkMbit)} Mbit/s and ${String(options.pps)} UDP packets/s each way, requests, an idle session`);
    screen.guestAt("host-a");
    const route: readonly HostName[] = ["host-b", "host-a"];
    const moves: { readonly demo: DemoMove; readonly points: Points; readonly move: Move }[] = [];
    for (const to of route) moves.push(await moveOnce(lab, traffic, samples, to, options.marginMs, screen, over));
    await traffic.idle();
    const end = await traffic.quit();
    return {
      result: {
        qemu: qemuVersion,
        accel: accelerator,
        dataPlane,
        moves: moves.map((each) => each.demo),
        tcp: { survived: end.survived, bytes: end.bulkUpBytes + end.bulkDownBytes },
      },
      points: moves.map((each) => each.points),
      totals: moves.map(({ move }) => ({ totalMs: move.totalMs, bytes: move.bytes })),
      samples,
      pps: options.pps,
      bulkMbit: options.bulkMbit,
      machine: describeMachine(),
      at: new Date().toISOString(),
    };
  } finally {
    traffic.kill();
  }
}

async function moveOnce(lab: Lab, traffic: Traffic, samples: readonly TrafficSample[], to: HostName, marginMs: number, screen: Screen, over: AbortSignal): Promise<{ demo: DemoMove; points: Points; move: Move }> {
  const name = (what: string): string => `${to}.${what}`;
  screen.phase("counting");
  await traffic.mark(name("before"));
  await sleep(marginMs, undefined, { signal: over });
  screen.phase(`careof migrate ${PLAN.guest.name} ${to}`);
  const decided = await traffic.mark(name("decided"));
  screen.guestAt(null);
  const move = await lab.migrate(to, (line) => { screen.phase(`moving to ${to}: ${line.trim()}`); });
  if (move.result !== "completed") throw new DemoEnd("move-failed", `the move to ${to} ended as ${move.result}: ${move.reason}. The ends of the logs are above.`, lab.logs(8));
  screen.guestAt(to);
  screen.phase("counting");
  // The home agent knows that the move is done before the correspondent has heard the guest again.
  await sleep(HEARD_MS, undefined, { signal: over });
  await traffic.mark(name("heard"));
  await sleep(marginMs - HEARD_MS, undefined, { signal: over });
  await traffic.mark(name("after"));
  await sleep(ARRIVAL_MS, undefined, { signal: over });
  const near = await traffic.window(name("decided"), name("heard"));
  const window = await traffic.window(name("before"), name("after"));
  const demo = demoMove(move, window);
  const fellSilent = near.serviceGapUpAt;
  const heard = fellSilent === null || near.serviceGapUpMs === null ? null : fellSilent + near.serviceGapUpMs;
  screen.say(`${move.from} → ${move.to}: longest time without a byte ${figure(demo.tcpStallMs)}, pause ${figure(demo.pauseMs)}, lost ${String(demo.lostDown)} down and ${String(demo.lostUp)} up of ${String(demo.sentDown + demo.sentUp)} packets`);
  return { demo, move, points: { a: decided.t, b: fellSilent, c: heard, d: heard === null ? null : steadyAgain(samples, decided.t, heard) } };
}

function figure(value: number | null): string {
  return value === null ? "not measured" : `${value.toFixed(1)} ms`;
}
