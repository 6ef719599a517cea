import { randomBytes } from "node:crypto";
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { makeImage } from "../../agent/hypervisor/image.js";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import type { Lab } from "../../deploy/lab/lab.js";
import { REPOSITORY } from "../../deploy/lab/program.js";
import { mac } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { epoch, vmId } from "../../model/ids.js";
import { BareQemu } from "./bare-qemu.js";
import type { Load, Measured } from "./cases.js";
import { DISK_BYTES } from "./disk.js";

/** As a person does it between two hosts: by TCP, or by TCP with QEMU's own encryption. */
export type Way = "tcp" | "tls";

const PORT = "7001";
const NBD_PORT = "7002";
const TAP = "bare0";
/** As careof says for "unlimited". QEMU's own default would be the narrowest place. */
const UNLIMITED_BANDWIDTH = 4 * 1024 ** 3;
const MEMORY_BYTES = 128 * 2 ** 20;

const figures = z.looseObject({ ram: z.looseObject({ transferred: z.number() }) });
const nodes = z.array(z.looseObject({ "node-name": z.string(), image: z.looseObject({ "actual-size": z.number().optional() }) }));

/**
 * The same guest and the same QEMU without careof, on the same two hosts of the lab and over the same links: started by hand, told by hand. A disk goes by the same NBD and the same mirror
 * that careof uses, likewise by TCP. Goes with its lab.
 */
export class Bare {
  readonly #lab: Lab;
  readonly #load: Load;
  readonly #clock = new SystemClock({ keepAlive: true });
  #at: HostName = "host-a";
  #life = 1;
  #guest: BareQemu | null = null;

  private constructor(lab: Lab, load: Load) {
    this.#lab = lab;
    this.#load = load;
  }

  static async open(lab: Lab, load: Load, disk: string | null): Promise<Bare> {
    const bare = new Bare(lab, load);
    const key = `qemu:${randomBytes(32).toString("hex")}\n`;
    for (const host of HOSTS) {
      mkdirSync(bare.#directory(host), { recursive: true, mode: 0o700 });
      writeFileSync(join(bare.#directory(host), "keys.psk"), key, { mode: 0o600 });
      await must(inNamespace(lab.namespace(PLAN.hosts[host].node), ["ip", "-batch", "-"]), { input: [`tuntap add dev ${TAP} mode tap vnet_hdr`, `link set ${TAP} up`].join("\n") });
    }
    if (disk !== null) copyFileSync(disk, bare.#disk("host-a"));
    bare.#guest = await bare.#start("host-a", false);
    return bare;
  }

  async migrate(channels: number, way: Way): Promise<Measured> {
    const source = this.#running;
    const from = this.#at;
    const to: HostName = from === "host-a" ? "host-b" : "host-a";
    const { disk, downtimeLimitMs } = this.#load;
    const begun = this.#clock.monotonic();
    if (disk) await makeImage({ path: this.#disk(to), format: "raw", virtualBytes: DISK_BYTES });
    const target = await this.#start(to, true);
    const startedAt = this.#clock.monotonic();
    await this.#prepare(target, to, "server", channels, way);
    await this.#prepare(source, from, "client", channels, way);
    if (disk) await this.#exportDisk(target, to, way);
    await target.execute("migrate-incoming", { uri: `tcp:${PLAN.hosts[to].careOf}:${PORT}` });
    if (disk) await this.#mirror(source, to, way);
    const copyAt = this.#clock.monotonic();
    const stopped = source.heard("STOP", ({ name }) => name === "STOP");
    const resumed = target.heard("RESUME", ({ name }) => name === "RESUME");
    const completed = source.reaches("completed");
    const switchover = disk ? source.reaches("pre-switchover") : null;
    await source.execute("migrate-set-parameters", { "max-bandwidth": UNLIMITED_BANDWIDTH, "downtime-limit": downtimeLimitMs });
    await source.execute("migrate", { uri: `tcp:${PLAN.hosts[to].careOf}:${PORT}` });
    if (switchover !== null) {
      await switchover;
      await this.#handDiskOver(source, target);
    }
    await completed;
    const { at: stopAt } = await stopped;
    const { at: resumeAt } = await resumed;
    const { ram } = await source.query(figures, "query-migrate");
    const bytes = ram.transferred + (disk ? await allocated(target) : 0);
    await source.end();
    if (disk) rmSync(this.#disk(from));
    this.#guest = target;
    this.#at = to;
    return { totalMs: resumeAt - begun, pauseMs: resumeAt - stopAt, bytes, phases: { prepare: startedAt - begun, ...(disk ? { disks: copyAt - startedAt } : {}), copy: stopAt - copyAt, pause: resumeAt - stopAt } };
  }

  /** Takes the guest's processor away, so that it does not disturb the other side's turn. */
  freeze(): void {
    this.#running.signal("SIGSTOP");
  }

  thaw(): void {
    this.#running.signal("SIGCONT");
  }

  get #running(): BareQemu {
    if (this.#guest === null) throw new Error("the bare guest was not started");
    return this.#guest;
  }

  #directory(host: HostName): string {
    return join(this.#lab.directory, `bare-${host.slice(-1)}`);
  }

  #disk(host: HostName): string {
    return join(this.#directory(host), "disk.raw");
  }

  #start(host: HostName, incoming: boolean): Promise<BareQemu> {
    const image = join(REPOSITORY, ".cache", "guest");
    const { dirtyMb, disk } = this.#load;
    const path = this.#disk(host);
    const append = ["console=ttyS0", "quiet", "panic=-1", `careof.ip=${PLAN.guest.address}/32`, `careof.gw=${PLAN.gateway}`, ...(dirtyMb > 0 ? [`careof.dirty=${String(dirtyMb)}`] : [])].join(" ");
    const qemu = {
      memoryBytes: MEMORY_BYTES, cpus: 1, kernel: join(image, "vmlinuz"), initrd: join(image, "initramfs.gz"), append, extraArgs: [],
      disks: disk ? [path] : [], diskOptions: disk ? [{ path, format: "raw" as const, shared: false }] : [],
    };
    const spec = { vm: vmId("bare"), epoch: epoch(this.#life++), mac: mac(PLAN.guest.mac), port: TAP, qemu };
    return BareQemu.start({ directory: this.#directory(host), namespace: this.#lab.namespace(PLAN.hosts[host].node), spec, incoming, clock: this.#clock });
  }

  /** A QEMU is the server first, when the guest comes, and the client later, when it leaves. */
  async #prepare(qemu: BareQemu, host: HostName, endpoint: "server" | "client", channels: number, way: Way): Promise<void> {
    if (way === "tls") await qemu.execute("object-add", { "qom-type": "tls-creds-psk", id: credentials(endpoint), dir: this.#directory(host), endpoint });
    const wanted = { events: true, multifd: channels > 1, "pause-before-switchover": endpoint === "client" && this.#load.disk };
    await qemu.execute("migrate-set-capabilities", { capabilities: Object.entries(wanted).map(([capability, state]) => ({ capability, state })) });
    await qemu.execute("migrate-set-parameters", { "tls-creds": way === "tls" ? credentials(endpoint) : "", ...(channels > 1 ? { "multifd-channels": channels } : {}) });
  }

  async #exportDisk(target: BareQemu, to: HostName, way: Way): Promise<void> {
    const addr = { type: "inet", data: { host: PLAN.hosts[to].careOf, port: NBD_PORT } };
    await target.execute("nbd-server-start", { addr, ...(way === "tls" ? { "tls-creds": credentials("server") } : {}) });
    await target.execute("block-export-add", { type: "nbd", id: "disk0", "node-name": "disk0", name: "disk0", writable: true });
  }

  async #mirror(source: BareQemu, to: HostName, way: Way): Promise<void> {
    const ready = source.heard("BLOCK_JOB_READY", ({ name }) => name === "BLOCK_JOB_READY");
    const server = { type: "inet", host: PLAN.hosts[to].careOf, port: NBD_PORT };
    await source.execute("blockdev-add", { driver: "nbd", "node-name": "copy", server, export: "disk0", discard: "unmap", "detect-zeroes": "unmap", ...(way === "tls" ? { "tls-creds": credentials("client") } : {}) });
    await source.execute("blockdev-mirror", { "job-id": "copy", device: "disk0", target: "copy", sync: "full", "copy-mode": "write-blocking", "on-target-error": "report" });
    await ready;
  }

  /** The guest stands: the source lets go, the target ends its export, and the stream goes on. */
  async #handDiskOver(source: BareQemu, target: BareQemu): Promise<void> {
    const over = source.heard("BLOCK_JOB_COMPLETED", ({ name }) => name === "BLOCK_JOB_COMPLETED");
    await source.execute("block-job-cancel", { device: "copy" });
    await over;
    await source.execute("blockdev-del", { "node-name": "copy" });
    await target.execute("nbd-server-stop");
    await source.execute("migrate-continue", { state: "pre-switchover" });
  }
}

function credentials(endpoint: "server" | "client"): string {
  return `tls-${endpoint}`;
}

/** What had to be carried of the disk: its holes were not. */
async function allocated(target: BareQemu): Promise<number> {
  const known = await target.query(nodes, "query-named-block-nodes");
  return known.find((each) => each["node-name"] === "disk0")?.image["actual-size"] ?? 0;
}
