import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { NamespaceHttp, type HttpAnswer } from "./api.js";
import { command, inNamespace, type CommandResult } from "./command.js";
import type { FleetGuest } from "./fleet.js";
import { writeFiles, type GuestImage, type LabFiles } from "./files.js";
import { Part } from "./part.js";
import { Reaper } from "./reaper.js";
import { HOSTS, labPlan, newRunId, PLAN, type HostName, type LabPlan, type Node, type PathMtus, type WireDelay } from "./plan.js";
import { abandonedRuns, labDirectory, register, removeRun } from "./registry.js";
import { makeTopology } from "./topology.js";
import type { Wire } from "./wires.js";
import { REPOSITORY } from "./program.js";
import { Traffic, trafficProgram, type TrafficOptions } from "./traffic.js";

export type PartName = "home-agent" | HostName;

const hostsSchema = z.array(z.looseObject({ name: z.string(), state: z.string(), since: z.iso.datetime().nullable(), capabilities: z.looseObject({}).nullish() }));

/** For a guest to boot and answer, in s: ten on two quiet processors. */
const GUEST_ANSWERS_S = 120;

/** What `careof where --output json` says. */
export const whereSchema = z.object({
  vm: z.string(),
  homeAddresses: z.array(z.string()),
  host: z.string().nullable(),
  careOf: z.string().nullable(),
  state: z.enum(["bound", "moving", "stale", "expired", "lost"]),
  epoch: z.number(),
  since: z.string().nullable(),
  lastHeartbeat: z.string().nullable(),
  evidence: z.string(),
});

/** What `careof migrate --output json` says. */
export const moveSchema = z.object({
  migration: z.string(),
  vm: z.string(),
  from: z.string(),
  to: z.string(),
  result: z.enum(["completed", "failed", "cancelled", "lost"]),
  reason: z.string(),
  totalMs: z.number().nullable(),
  pauseMs: z.number().nullable(),
  gapDownMs: z.number().nullable(),
  gapUpMs: z.number().nullable(),
  bytes: z.number().nullable(),
  /** Packets that found the queue of the guest's port full. */
  overflowed: z.number().nullable(),
  /** How the source's gate was opened. */
  hold: z.string().nullable(),
});

export type Move = z.infer<typeof moveSchema>;
export type Where = z.infer<typeof whereSchema>;

export interface LabOptions {
  /** Laid over the generated files, by their top-level keys. */
  readonly homeAgent?: Readonly<Record<string, unknown>>;
  readonly agent?: Readonly<Record<string, unknown>>;
  /** Lists a third host for the guest, which nobody starts. */
  readonly absentHost?: boolean;
  /** Makes the cables from the router to these hosts so long. */
  readonly wires?: Partial<Readonly<Record<HostName, WireDelay>>>;
  /** What the router lets through to and from these hosts, in bytes. */
  readonly pathMtus?: PathMtus;
  /** Starts guests so that a `Witness` can see them. */
  readonly witnessed?: boolean;
  /** Guests beside the lab's own. */
  readonly fleet?: readonly FleetGuest[];
  /** The guest writes to so many MB of its memory all the time. */
  readonly dirtyMb?: number;
  /** Disks of the guest's own, which it writes to: see `OWN_DISKS`. Whoever makes the lab makes them. */
  readonly disks?: readonly object[];
  /** It does not write to them. */
  readonly idleDisks?: boolean;
}

/**
 * The product as an operator sets it up, in namespaces of one machine: a home agent and two host agents as processes of their own, from
 * ordinary configuration files. `close` removes everything, whatever state it is in; when this process is killed first, its reaper does.
 */
export class Lab {
  readonly run: string;
  readonly directory: string;
  readonly plan: LabPlan;
  readonly files: LabFiles;
  readonly #parts = new Map<PartName, Part>();
  readonly #deaths: ((part: Part) => void)[] = [];
  readonly #expected = new WeakSet<Part>();
  /** Of `LabOptions.wires`: host A's before host B's. */
  readonly wires: readonly Wire[];
  readonly #reaper: Reaper;
  readonly #over = new AbortController();
  #http: NamespaceHttp | null = null;

  private constructor(plan: LabPlan, files: LabFiles, wires: readonly Wire[], reaper: Reaper) {
    this.wires = wires;
    this.#reaper = reaper;
    this.run = plan.run;
    this.plan = plan;
    this.directory = labDirectory(plan.run);
    this.files = files;
  }

  /** Network and files; no part runs yet. Removes what abandoned runs left. @throws CareofError with what is missing on this machine */
  static async make(options: LabOptions = {}): Promise<Lab> {
    const image = guestImage();
    await cleanAbandoned();
    const run = newRunId();
    register(run);
    const reaper = new Reaper(run);
    try {
      const plan = labPlan(run, options.wires, options.pathMtus);
      const wires = await makeTopology(plan);
      return new Lab(plan, writeFiles({ directory: labDirectory(run), image, ...options }), wires, reaper);
    } catch (thrown) {
      await removeRun(run);
      reaper.dismiss();
      throw thrown;
    }
  }

  /** `make`, and all parts up and connected. */
  static async start(options: LabOptions = {}): Promise<Lab> {
    const lab = await Lab.make(options);
    try {
      lab.startPart("home-agent");
      for (const host of HOSTS) lab.startPart(host);
      await lab.connected(HOSTS, 60_000);
      return lab;
    } catch (thrown) {
      await lab.close();
      throw thrown;
    }
  }

  /** Where `OWN_DISKS` is on a host. */
  disksOf(host: HostName): string {
    return join(this.directory, host, "disks");
  }

  namespace(node: Node): string {
    return this.plan.namespaces[node];
  }

  startPart(name: PartName): Part {
    const running = this.#parts.get(name);
    if (running?.running === true) return running;
    const [node, file, kind]: readonly [Node, string, string] = name === "home-agent" ? ["h", this.files.homeAgent, "home-agent"] : [PLAN.hosts[name].node, this.files.agents[name], "agent"];
    const words = [...executable(), kind, "--config", file];
    const part = new Part(name, inNamespace(this.namespace(node), name === "home-agent" ? words : ["env", "-C", this.disksOf(name), ...words]), join(this.files.logs, `${name}.log`));
    this.#parts.set(name, part);
    const died = (): void => {
      if (!this.#expected.has(part)) for (const tell of this.#deaths) tell(part);
    };
    part.ended.then(died, died);
    return part;
  }

  /** @throws CareofError `no-part` if it was never started */
  part(name: PartName): Part {
    const part = this.#parts.get(name);
    if (part === undefined) throw new CareofError("no-part", `${name} was not started`);
    return part;
  }

  /** Ends a part on purpose: SIGTERM lets it close cleanly, SIGKILL is a crash. */
  async endPart(name: PartName, signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const part = this.part(name);
    this.#expected.add(part);
    await part.stop(signal);
  }

  /** Calls back when a part ends that nobody wanted to end. */
  onDeath(tell: (part: Part) => void): void {
    this.#deaths.push(tell);
  }

  /**
   * Waits until the home agent says that these hosts are connected, by their agents' present lives: that an earlier one has ended, it may not have noticed yet.
   * @throws CareofError `part-died`, `timed-out` with the logs' ends
   */
  async connected(hosts: readonly HostName[], limitMs: number): Promise<void> {
    await this.until("the hosts are connected", limitMs, async () => {
      for (const [name, part] of this.#parts) {
        if (!part.running && !this.#expected.has(part)) throw new CareofError("part-died", `${name} ended while it was started:\n${part.tail(8)}`);
      }
      const known = await this.http("GET", "/v1/hosts").then(({ status, body }) => (status === 200 ? hostsSchema.parse(body) : []), () => []);
      return hosts.every((host) => known.some(({ name, state, since }) => name === host && state === "connected" && since !== null && Date.parse(since) >= (this.#parts.get(host)?.startedAt ?? 0)));
    });
  }

  /** Runs `careof` where the operator's API listens. */
  async careof(words: readonly string[], limitMs = 60_000, onStderr?: (line: string) => void): Promise<CommandResult> {
    return command(inNamespace(this.namespace("h"), [...executable(), ...words]), { limitMs, signal: this.#over.signal, ...(onStderr === undefined ? {} : { onStderr }) });
  }

  /** @throws CareofError `careof-failed` with what it said on standard error */
  async json<T>(schema: z.ZodType<T>, words: readonly string[], limitMs = 60_000): Promise<T> {
    const answer = await this.careof([...words, "--output", "json"], limitMs);
    if (answer.code !== 0) throw new CareofError("careof-failed", `careof ${words.join(" ")} ended with ${String(answer.code)}: ${answer.stderr.trim()} ${answer.stdout.trim()}`);
    return schema.parse(JSON.parse(answer.stdout));
  }

  /** As `careof where --output json` says it. */
  async where(vm: string = PLAN.guest.name): Promise<Where> {
    const { status, body } = await this.http("GET", `/v1/vms/${vm}`);
    if (status !== 200) throw new CareofError("careof-failed", `where ${vm}: ${String(status)} ${JSON.stringify(body)}`);
    return whereSchema.parse(body);
  }

  /** `onProgress` hears what the command says for people meanwhile. @throws CareofError `careof-failed` unless it completed */
  async migrate(host: HostName, onProgress: (line: string) => void = () => undefined): Promise<Move> {
    const answer = await this.careof(["migrate", PLAN.guest.name, host, "--output", "json"], 120_000, onProgress);
    if (answer.code !== 0) throw new CareofError("careof-failed", `careof migrate ${PLAN.guest.name} ${host} ended with ${String(answer.code)}: ${answer.stderr.trim().split("\n").at(-1) ?? ""} ${answer.stdout.trim()}`);
    return moveSchema.parse(JSON.parse(answer.stdout));
  }

  /** A request to the operators' API, as any client would send it. @throws CareofError `no-answer` (retryable) */
  async http(method: string, path: string, body: string | null = null): Promise<HttpAnswer> {
    this.#http ??= new NamespaceHttp(this.namespace("h"));
    return this.#http.request(method, `http://127.0.0.1:${String(PLAN.ports.api)}${path}`, body);
  }

  /** Starts the guest; resolves when its host says that it runs, which is before it listens. */
  async startGuest(host: HostName): Promise<void> {
    const answer = await this.careof(["start", PLAN.guest.name, host], 90_000);
    if (answer.code !== 0) throw new CareofError("careof-failed", `the guest did not start: ${answer.stderr.trim()}`);
  }

  /** The correspondent, with all its sessions to the guest. */
  async traffic(options: Pick<TrafficOptions, "pps" | "bulkMbit"> & Partial<Pick<TrafficOptions, "onSample">>): Promise<Traffic> {
    const program = await trafficProgram();
    const traffic = new Traffic({ program, namespace: this.namespace("c"), to: PLAN.guest.address, waitS: GUEST_ANSWERS_S, ...options });
    try {
      await traffic.ready(1.5 * GUEST_ANSWERS_S * 1000);
    } catch (thrown) {
      traffic.kill();
      throw thrown;
    }
    return traffic;
  }

  /** Polls. @throws CareofError `timed-out` with the ends of all logs */
  async until(what: string, limitMs: number, check: () => Promise<boolean>): Promise<void> {
    const end = Date.now() + limitMs;
    while (!(await check())) {
      if (this.#over.signal.aborted) throw new CareofError("lab-closed", `the lab was closed before ${what}`);
      if (Date.now() > end) throw new CareofError("timed-out", `not within ${String(limitMs)} ms: ${what}\n${this.logs(6)}`);
      await sleep(100);
    }
  }

  /** The last lines of every part's log. */
  logs(lines: number): string {
    return [...this.#parts].map(([name, part]) => `--- ${name}${part.running ? "" : " (ended)"}\n${part.tail(lines)}`).join("\n");
  }

  /** Lets this program end while the lab goes on; the next one that is made removes it. */
  leave(): void {
    for (const part of this.#parts.values()) part.leave();
    for (const wire of this.wires) wire.leave();
    this.#reaper.dismiss();
  }

  /** Ends and removes everything, and says what is left: nothing, unless the kernel refuses. Idempotent. */
  async close(): Promise<string[]> {
    // First the commands under way: what ends below is not theirs to tell.
    this.#over.abort();
    this.#http?.close();
    for (const part of this.#parts.values()) this.#expected.add(part);
    for (const wire of this.wires) await wire.close();
    const left = await removeRun(this.run);
    this.#reaper.dismiss();
    return left;
  }
}

/** Removes what runs that crashed left behind; says which. */
export async function cleanAbandoned(): Promise<string[]> {
  const runs = abandonedRuns();
  for (const run of runs) await removeRun(run);
  return runs;
}

function executable(): string[] {
  return [process.execPath, join(REPOSITORY, "dist", "cli", "main.js")];
}

/** @throws CareofError `no-guest-image` */
function guestImage(): GuestImage {
  const image = { kernel: join(REPOSITORY, ".cache", "guest", "vmlinuz"), initrd: join(REPOSITORY, ".cache", "guest", "initramfs.gz") };
  if (!existsSync(image.kernel) || !existsSync(image.initrd)) {
    throw new CareofError("no-guest-image", "the guest image is missing: run `bash deploy/setup/prepare.sh demo` first");
  }
  return image;
}
