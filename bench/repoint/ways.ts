import { release } from "node:os";
import { command, inNamespace, must } from "../../deploy/lab/command.js";
import { requireLink } from "../../net/netlink/links.js";
import type { BpfHomeTunnel } from "../../net/tunnel-bpf-home.js";
import { IPIP_HOME_WAY } from "../../net/tunnel-ipip-home.js";
import type { HomeWay } from "../../net/tunnel-way.js";
import { homes } from "../dataplane/variants.js";
import { quantile } from "../statistics.js";
import { boundAt, CARE_OF, type TwoHosts } from "./two-hosts.js";

/** Bindings among which one is re-pointed after the other. */
const BINDINGS = 1000;
/** Not counted: until compiled code runs. */
const WARM_UP = 2000;
const DEVICE = "tun0";
const REAL = "ipip external";

/** How long one re-point takes from the decision to the kernel's acknowledgement, in µs. */
export interface Way {
  readonly name: "bpf" | "ipip" | "ip route replace";
  /** Through which the route leads. */
  readonly device?: string;
  readonly n: number;
  readonly p50Us: number | null;
  readonly p99Us: number | null;
}

export async function bpfWay(two: TwoHosts, n: number): Promise<Way> {
  return way("bpf", await repoints(two, () => two.home(BINDINGS), n));
}

/**
 * The ipip driver's own re-point: its map entry, and the route by netlink. Where the kernel has no ipip device, the route leads over a VXLAN device that takes its destination from the route as
 * well: the kernel does the same for it but for the name of the device.
 */
export async function ipipWay(two: TwoHosts, n: number): Promise<Way> {
  const namespace = two.network.name("h");
  const device = await makeDevice(namespace);
  const isReal = device === REAL;
  if (isReal) await must(inNamespace(namespace, ["ip", "link", "del", DEVICE]));
  const over: HomeWay = isReal ? IPIP_HOME_WAY : {
    ...IPIP_HOME_WAY, prepare: (netlink) => requireLink(netlink, DEVICE).index, attach: () => undefined, clear: () => undefined,
  };
  try {
    return { ...way("ipip", await repoints(two, () => two.home(BINDINGS, over), n)), device };
  } finally {
    if (!isReal) await must(inNamespace(namespace, ["ip", "link", "del", DEVICE]));
  }
}

/** What the home agent does when a handover leads: it makes the entry and puts it. */
async function repoints(two: TwoHosts, open: () => BpfHomeTunnel, n: number): Promise<number[]> {
  const addresses = homes(BINDINGS);
  const tunnel = open();
  try {
    await two.inHome(() => tunnel.set(addresses.map((home) => boundAt(home, 0))));
    return timed(n, (turn) => {
      const home = addresses[turn % BINDINGS];
      if (home !== undefined) tunnel.put(boundAt(home, turnOf(turn)));
    });
  } finally {
    await two.inHome(() => tunnel.close({ keep: false }));
  }
}

/** What a script would do. */
export async function spawnWay(two: TwoHosts, n: number): Promise<Way> {
  const namespace = two.network.name("h");
  const device = await makeDevice(namespace);
  const [home] = homes(1);
  try {
    const times: number[] = [];
    for (let turn = 0; turn < n; turn++) {
      const begun = performance.now();
      await must(inNamespace(namespace, ["ip", "route", "replace", `${String(home)}/32`, "encap", "ip", "id", "0", "dst", CARE_OF[turnOf(turn)], "dev", DEVICE]));
      times.push((performance.now() - begun) * 1000);
    }
    return { ...way("ip route replace", times), device };
  } finally {
    await must(inNamespace(namespace, ["ip", "link", "del", DEVICE]));
  }
}

/** Every binding goes to and fro. */
function turnOf(turn: number): 0 | 1 {
  return Math.floor(turn / BINDINGS) % 2 === 0 ? 1 : 0;
}

async function makeDevice(namespace: string): Promise<string> {
  const made = await command(inNamespace(namespace, ["ip", "link", "add", DEVICE, "type", "ipip", "external"]));
  const name = made.code === 0 ? REAL : `vxlan external (Linux ${release()} has no ipip device)`;
  if (made.code !== 0) await must(inNamespace(namespace, ["ip", "link", "add", DEVICE, "type", "vxlan", "external", "dstport", "4789"]));
  await must(inNamespace(namespace, ["ip", "link", "set", DEVICE, "up"]));
  return name;
}

function timed(n: number, work: (turn: number) => void): number[] {
  for (let turn = 0; turn < WARM_UP; turn++) work(turn);
  const times = new Array<number>(n).fill(0);
  for (let turn = 0; turn < n; turn++) {
    const begun = process.hrtime.bigint();
    work(turn);
    times[turn] = Number(process.hrtime.bigint() - begun) / 1000;
  }
  return times;
}

export function way(name: Way["name"], times: readonly number[]): Way {
  const sorted = [...times].sort((one, other) => one - other);
  const at = (q: number): number | null => {
    const value = quantile(sorted, q);
    return value === null ? null : Number(value.toFixed(2));
  };
  return { name, n: times.length, p50Us: at(0.5), p99Us: at(0.99) };
}
