import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { inNamespace } from "../../net/netns.js";
import { listFilters } from "../../net/netlink/filters.js";
import { Netlink } from "../../net/netlink/client.js";
import { listLinks } from "../../net/netlink/links.js";
import { sample, type Metric, type Times } from "./measure.js";
import type { Path } from "./variants.js";

const SWITCH = "/proc/sys/kernel/bpf_stats_enabled";

/** One program's runs since its statistics were switched on. */
export interface ProgramTime {
  readonly program: string;
  readonly runs: number;
  readonly nsPerRun: number;
}

/** What each of our programs takes under one kind of traffic, in ns a run, and the part of one processor's time that is. `ppsAll`: packets to ten thousand addresses in turn. */
export interface TrafficTimes {
  readonly traffic: Metric | "ppsAll";
  /** At both ends. */
  readonly bindings: number;
  readonly share: number;
  readonly programs: readonly ProgramTime[];
}

/** Our programs by the kernel's id, as the filters in these namespaces name them. */
function programsIn(namespaces: readonly string[]): Map<number, string> {
  const names = new Map<number, string>();
  for (const path of namespaces) {
    inNamespace(path, () => {
      const netlink = new Netlink();
      try {
        for (const link of listLinks(netlink)) for (const filter of listFilters(netlink, link.index)) names.set(filter.program, filter.name.replace("careof_", ""));
      } finally {
        netlink.close();
      }
    });
  }
  return names;
}

/** What the kernel says in fdinfo of each program that this process holds. */
function readTimes(): Map<number, { readonly runs: number; readonly ns: number }> {
  const found = new Map<number, { runs: number; ns: number }>();
  for (const fd of readdirSync("/proc/self/fd")) {
    let text: string;
    try {
      text = readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
    } catch {
      continue; // the descriptor of the list itself
    }
    const field = (name: string): number | null => {
      const value = new RegExp(`^${name}:\\s*([0-9]+)$`, "m").exec(text)?.[1];
      return value === undefined ? null : Number(value);
    };
    const id = field("prog_id");
    if (id !== null) found.set(id, { runs: field("run_cnt") ?? 0, ns: field("run_time_ns") ?? 0 });
  }
  return found;
}

/** Where the time goes: the programs in these namespaces (loaded by this process), while `work` goes on. The statistics themselves cost some 50 ns a run. */
export async function programTimes(namespaces: readonly string[], work: () => Promise<void>): Promise<ProgramTime[]> {
  const before = readFileSync(SWITCH, "utf8").trim();
  const names = programsIn(namespaces);
  writeFileSync(SWITCH, "1");
  try {
    const start = readTimes();
    await work();
    const end = readTimes();
    return [...names].flatMap(([id, program]) => {
      const [from, to] = [start.get(id), end.get(id)];
      if (from === undefined || to === undefined || to.runs === from.runs) return [];
      const runs = to.runs - from.runs;
      return [{ program, runs, nsPerRun: Math.round((to.ns - from.ns) / runs) }];
    });
  } finally {
    writeFileSync(SWITCH, before);
  }
}

/** The same as part of the time that `work` takes. */
export async function timed(path: Path, traffic: TrafficTimes["traffic"], bindings: number, work: () => Promise<unknown>): Promise<TrafficTimes> {
  const begun = performance.now();
  const programs = await programTimes([path.network.path("h"), path.network.path("a")], async () => { await work(); });
  const ns = (performance.now() - begun) * 1e6;
  return { traffic, bindings, share: Number((programs.reduce((sum, each) => sum + each.runs * each.nsPerRun, 0) / ns).toFixed(3)), programs };
}

export async function timesOf(path: Path, bindings: number, metrics: readonly Metric[], extent: Times): Promise<TrafficTimes[]> {
  const found: TrafficTimes[] = [];
  for (const metric of metrics) found.push(await timed(path, metric, bindings, () => sample(path, metric, extent)));
  return found;
}
