import { z } from "zod";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis, type Millis } from "../../model/ids.js";
import type { GuestEvent } from "./driver.js";
import type { DiskProgress, DiskSize, GuestDisks, MirrorOptions } from "./disks.js";
import { openFile } from "./open-files.js";
import { pause } from "./process.js";
import type { QmpEvent } from "./qmp.js";

/** Node names of qemu-args.ts. A copy's job has the name of the node that it writes to. */
export const LOCAL_NODE = /^disk([0-9]+)$/;
const COPY = "copy-";

/** The relay connects to the target and the exports are asked for their size meanwhile. */
const CONNECT_LIMIT = millis(15_000);
const FINISH_MS = 5000;
const DROP_MS = 10_000;

const image = z.looseObject({
  filename: z.string(), "virtual-size": z.number(), "actual-size": z.number().optional(),
  /** What it shows through where it has nothing of its own. */
  get "backing-image"() { return image.optional(); },
});
const nodes = z.array(z.looseObject({ "node-name": z.string(), image }));
type Image = z.infer<typeof image>;
const jobs = z.array(z.looseObject({ device: z.string(), len: z.number(), offset: z.number(), ready: z.boolean().default(false) }));

export interface QemuDisksOptions {
  readonly pid: number;
  /** @throws CareofError as QMP does */
  readonly execute: (command: string, parameters: Readonly<Record<string, unknown>>, limit?: Millis) => Promise<unknown>;
  readonly emit: (event: GuestEvent) => void;
  readonly clock: Clock;
}

/** Block jobs and NBD by QMP. What there is is asked of QEMU, so that a later life of the agent finds it. */
export class QemuDisks implements GuestDisks {
  readonly #options: QemuDisksOptions;
  /** Copies that are not ready yet; `null` when none has been begun. */
  #copying: Set<string> | null = null;
  /** All of them run, or have ended. */
  #begun = false;
  #finishing = false;
  readonly #ended = new Map<string, string | null>();
  #exporting = false;

  constructor(options: QemuDisksOptions) {
    this.#options = options;
  }

  async sizes(): Promise<readonly DiskSize[]> {
    return (await this.#nodes()).flatMap(({ "node-name": name, image }) => {
      const disk = LOCAL_NODE.exec(name)?.[1];
      return disk === undefined ? [] : [{ disk: Number(disk), virtualBytes: image["virtual-size"], allocatedBytes: allocated(image), file: image.filename, open: openFile(this.#options.pid, image.filename) }];
    }).sort((a, b) => a.disk - b.disk);
  }

  async exportTo(socket: string): Promise<void> {
    const names = await this.#local();
    if (names.length === 0) return;
    await this.#execute("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
    this.#exporting = true;
    for (const name of names) await this.#execute("block-export-add", { type: "nbd", id: name, "node-name": name, name, writable: true });
  }

  async endExports(): Promise<void> {
    if (!this.#exporting) return;
    await this.#execute("nbd-server-stop", {}, CONNECT_LIMIT);
    this.#exporting = false;
  }

  async mirror({ socket, maxBandwidth }: MirrorOptions): Promise<void> {
    const names = await this.#local();
    this.#copying = new Set(names.map((name) => `${COPY}${name}`));
    this.#begun = false;
    this.#finishing = false;
    this.#ended.clear();
    for (const name of names) {
      const copy = `${COPY}${name}`;
      await this.#execute("blockdev-add", {
        driver: "nbd", "node-name": copy, server: { type: "unix", path: socket }, export: name, discard: "unmap", "detect-zeroes": "unmap",
      }, CONNECT_LIMIT);
      await this.#execute("blockdev-mirror", {
        "job-id": copy, device: name, target: copy, sync: "full", "copy-mode": "write-blocking", "on-target-error": "report", ...(maxBandwidth === 0 ? {} : { speed: maxBandwidth }),
      }, CONNECT_LIMIT);
    }
    this.#begun = true;
    if (names.length === 0) this.#options.emit({ kind: "disks", status: "ready", detail: "" });
  }

  /** Also notices what was told while nobody listened: QEMU tells nothing twice, and the monitor of somebody else's process may be another client's for a while. */
  async progress(): Promise<DiskProgress> {
    const watched = this.#begun ? [...this.#copying ?? []] : [];
    const running = await this.#jobs();
    for (const { device, ready } of running) if (ready) this.#isReady(device);
    for (const device of watched) if (!running.some((job) => job.device === device)) this.#hasEnded(device, "it ended while its monitor did not answer");
    return { copied: running.reduce((sum, { offset }) => sum + offset, 0), total: running.reduce((sum, { len }) => sum + len, 0) };
  }

  async finish(): Promise<void> {
    const { clock } = this.#options;
    if (this.#copying === null || this.#copying.size > 0) throw new CareofError("disk-failed", "the disks are not the same on both sides yet");
    this.#finishing = true;
    const copies = (await this.#local()).map((name) => `${COPY}${name}`);
    // Of a copy that is ready this means: complete it, and stay with the old one.
    await Promise.all(copies.map((device) => this.#execute("block-job-cancel", { device })));
    const end = clock.monotonic() + FINISH_MS;
    while (copies.some((copy) => !this.#ended.has(copy))) {
      if (clock.monotonic() > end) throw new CareofError("disk-failed", `the copy of a disk did not end within ${String(FINISH_MS)} ms`);
      await pause(clock);
    }
    const bad = copies.map((copy) => this.#ended.get(copy)).find((error) => error !== null && error !== undefined);
    if (bad !== undefined) throw new CareofError("disk-failed", `the copy of a disk ended with: ${bad}`);
    await Promise.all(copies.map((copy) => this.#execute("blockdev-del", { "node-name": copy }, CONNECT_LIMIT)));
    this.#copying = null;
  }

  async drop(): Promise<void> {
    const { clock } = this.#options;
    this.#copying = null;
    const end = clock.monotonic() + DROP_MS;
    for (let running = await this.#jobs(); running.length > 0; running = await this.#jobs()) {
      if (clock.monotonic() > end) throw new CareofError("disk-failed", `the copy of a disk could not be ended within ${String(DROP_MS)} ms`, { retryable: true });
      // One that ends by itself meanwhile is not there any more: the next look says so.
      await Promise.allSettled(running.map(({ device }) => this.#execute("block-job-cancel", { device, force: true })));
      await pause(clock);
    }
    for (const { "node-name": name } of await this.#nodes()) if (name.startsWith(COPY)) await this.#execute("blockdev-del", { "node-name": name }, CONNECT_LIMIT);
  }

  take({ name, data }: QmpEvent): void {
    const device = data["device"];
    if (typeof device !== "string" || !device.startsWith(COPY)) return;
    if (name === "BLOCK_JOB_READY") this.#isReady(device);
    else if (name === "BLOCK_JOB_CANCELLED") this.#hasEnded(device, "cancelled");
    else if (name === "BLOCK_JOB_COMPLETED") this.#hasEnded(device, typeof data["error"] === "string" ? data["error"] : null);
  }

  #isReady(device: string): void {
    if (this.#copying?.delete(device) === true && this.#copying.size === 0) this.#options.emit({ kind: "disks", status: "ready", detail: "" });
  }

  /** `error`: `null` where it completed. */
  #hasEnded(device: string, error: string | null): void {
    if (this.#ended.has(device)) return;
    this.#ended.set(device, error);
    if (this.#copying !== null && !this.#finishing) this.#options.emit({ kind: "disks", status: "failed", detail: error === null || error === "cancelled" ? "the copy ended before its time" : error });
  }

  async #local(): Promise<readonly string[]> {
    return (await this.sizes()).map(({ disk }) => `disk${String(disk)}`);
  }

  async #nodes(): Promise<z.infer<typeof nodes>> {
    return nodes.parse(await this.#execute("query-named-block-nodes", {}));
  }

  async #jobs(): Promise<z.infer<typeof jobs>> {
    return jobs.parse(await this.#execute("query-block-jobs", {})).filter(({ device }) => device.startsWith(COPY));
  }

  #execute(command: string, parameters: Readonly<Record<string, unknown>>, limit?: Millis): Promise<unknown> {
    return this.#options.execute(command, parameters, limit);
  }
}

/** What the copy takes at most: it is one image, with all that shows through of those behind. */
function allocated(image: Image): number {
  const { "virtual-size": size, "actual-size": own = size, "backing-image": behind } = image;
  return behind === undefined ? own : Math.max(own, Math.min(size, own + allocated(behind)));
}
