import { z } from "zod";
import { ipAddress, mac } from "../model/address.js";
import { parsed } from "../model/config.js";
import { CareofError } from "../model/errors.js";
import { vmId, type VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { VmConfig } from "./config.js";
import { runningConfig, type Held, type Running } from "./running-config.js";
import type { Store } from "./store/store.js";

const KEY = "running";

const record = z.array(z.object({
  vm: parsed(vmId),
  driver: z.enum(["qemu", "external"]),
  homeAddresses: z.array(parsed(ipAddress)),
  mac: parsed(mac),
  qemu: z.object({
    memoryBytes: z.number(), cpus: z.number(), kernel: z.string(), initrd: z.string(), append: z.string(), disks: z.array(z.string()), extraArgs: z.array(z.string()),
    diskOptions: z.array(z.object({ path: z.string(), shared: z.boolean(), format: z.enum(["raw", "qcow2"]) })),
  }).nullable(),
}));

export interface HeldConfigOptions {
  readonly store: Store;
  readonly fence: number;
  readonly log: Logger;
}

/** VMs that run as they were started, while the file wants them otherwise from their next start on. In the store, so that a restart changes nothing under them either. */
export class HeldConfig {
  readonly #options: HeldConfigOptions;
  readonly #wanted = new Map<VmId, VmConfig>();
  readonly #running = new Map<VmId, Running>();
  #revision = 0;
  #turn: Promise<void> = Promise.resolve();

  constructor(options: HeldConfigOptions) {
    this.#options = options;
  }

  /** What counts when the process begins. @throws CareofError `store-corrupt`; `config-invalid` as `runningConfig` */
  restore(wanted: readonly VmConfig[], runs: (vm: VmId) => boolean): readonly VmConfig[] {
    const row = [...this.#options.store.entries(KEY)].find(({ key }) => key === KEY);
    if (row === undefined) return wanted;
    this.#revision = row.revision;
    const read = record.safeParse(row.value ?? []);
    if (!read.success) throw new CareofError("store-corrupt", "what VMs were started with cannot be read");
    return this.#take(new Map(read.data.map(({ vm, ...running }) => [vm, running])), wanted, runs).vms;
  }

  /** What counts from now on, and what of it waits. @throws CareofError `config-invalid` as `runningConfig`, having changed nothing */
  take(present: readonly VmConfig[], wanted: readonly VmConfig[], runs: (vm: VmId) => boolean): { readonly vms: readonly VmConfig[]; readonly held: readonly Held[] } {
    const taken = this.#take(new Map(present.map((vm) => [vm.name, vm])), wanted, runs);
    this.#write();
    return taken;
  }

  /** The VM runs nowhere any more: what it is from now on, `null` when it is so already. */
  ended(vm: VmId): VmConfig | null {
    const wanted = this.#wanted.get(vm) ?? null;
    if (wanted === null) return null;
    this.#wanted.delete(vm);
    this.#running.delete(vm);
    this.#write();
    return wanted;
  }

  has(vm: VmId): boolean {
    return this.#wanted.has(vm);
  }

  /** Resolves when all is on disk, or could not be written, which is logged. */
  async written(): Promise<void> {
    await this.#turn;
  }

  #take(present: ReadonlyMap<VmId, Running>, wanted: readonly VmConfig[], runs: (vm: VmId) => boolean): { readonly vms: readonly VmConfig[]; readonly held: readonly Held[] } {
    const { vms, held } = runningConfig(present, wanted, runs);
    this.#wanted.clear();
    this.#running.clear();
    const waiting = new Map(held.map(({ vm, running }) => [vm, running]));
    for (const vm of wanted) {
      const running = waiting.get(vm.name);
      if (running === undefined) continue;
      this.#wanted.set(vm.name, vm);
      this.#running.set(vm.name, running);
    }
    return { vms, held };
  }

  #write(): void {
    const value = this.#running.size === 0 ? null : [...this.#running].map(([vm, running]) => ({ vm, ...running }));
    if (value === null && this.#revision === 0) return;
    const { store, fence, log } = this.#options;
    this.#turn = this.#turn.then(async () => {
      let answer = await store.commit(this.#revision, fence, { key: KEY, value });
      // One that was removed keeps its revision in the store, which says which.
      if (answer.result === "conflict" && !answer.fenced) answer = await store.commit(answer.revision, fence, { key: KEY, value });
      if (answer.result === "ok") this.#revision = answer.revision;
      else log.error({ reason: "store-unavailable" }, "what VMs were started with was not written: a restart would take their changed configuration at once");
    });
  }
}
