import { CareofError } from "../model/errors.js";
import { Attempts } from "./attempts.js";
import { checkPorts } from "./entry-checks.js";
import { requireInterfaceName } from "./tap.js";
import type { PortQueue } from "./tap-queue.js";
import type { VmPort, VmPorts } from "./vm-port.js";

/** VM ports in memory, same contract. `frames` keeps what was sent, `dropped` what was asked to go, `external` are the interfaces of others that exist. */
export class FakeVmPorts implements VmPorts {
  readonly frames: { readonly name: string; readonly frame: Uint8Array }[] = [];
  readonly dropped: string[] = [];
  readonly external = new Set<string>();
  /** By port, packets that wait in its queue. */
  readonly waiting = new Map<string, Buffer[]>();
  /** By port, the process that has it open; of one that is not said, whoever is asked about. */
  readonly readers = new Map<string, number>();
  /** As it was last set. */
  pathMtu: number | null = null;
  #ports = new Map<string, VmPort>();

  set(ports: readonly VmPort[]): Promise<void> {
    return new Promise((resolve) => {
      this.#check(ports);
      this.#ports = new Map(ports.map((port) => [port.name, port]));
      resolve();
    });
  }

  renew(ports: readonly VmPort[]): Promise<void> {
    return new Promise((resolve) => {
      checkPorts(ports);
      const attempts = new Attempts();
      for (const port of ports) {
        attempts.make(() => {
          this.#requireUsable(port);
          this.#ports.set(port.name, port);
        });
      }
      attempts.end();
      resolve();
    });
  }

  put(port: VmPort): Promise<void> {
    return new Promise((resolve) => {
      this.#check([port]);
      this.#ports.set(port.name, port);
      resolve();
    });
  }

  drop(name: string): Promise<void> {
    return new Promise((resolve) => {
      this.#ports.delete(requireInterfaceName(name));
      this.dropped.push(name);
      resolve();
    });
  }

  giveAway(name: string): Promise<void> {
    if (this.#ports.has(name)) this.external.add(name);
    return this.drop(name);
  }

  sendFrame(name: string, frame: Uint8Array): void {
    if (!this.#ports.has(name) && !this.external.has(name)) throw noLink(name);
    this.frames.push({ name, frame });
  }

  overflowed(name: string): number {
    requireInterfaceName(name);
    return 0;
  }

  queue(name: string, reader: number): PortQueue {
    if (!this.#ports.has(name) && !this.external.has(name)) throw noLink(name);
    if ((this.readers.get(name) ?? reader) !== reader) throw new CareofError("no-reader", `process ${String(reader)} does not have TAP ${name} open`);
    const left = this.waiting.get(name) ?? [];
    return {
      isEmpty: () => left.length === 0, close: () => undefined,
      take: (limit) => { const packets = left.splice(0, limit); return { frames: packets.length, packets, unfit: 0 }; },
    };
  }

  usePathMtu(bytes: number): void {
    this.pathMtu = bytes;
  }

  list(): readonly VmPort[] {
    return [...this.#ports.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  close({ keep }: { readonly keep: boolean }): Promise<void> {
    if (!keep) this.#ports.clear();
    return Promise.resolve();
  }

  #check(ports: readonly VmPort[]): void {
    checkPorts(ports);
    for (const port of ports) this.#requireUsable(port);
  }

  #requireUsable({ kind, name }: VmPort): void {
    if (kind === "external" && !this.external.has(name)) throw noLink(name);
    if (kind === "tap" && this.external.has(name)) throw new CareofError("not-ours", `interface ${name} exists and was not made by this host agent`);
  }
}

function noLink(name: string): CareofError {
  return new CareofError("no-link", `there is no interface "${name}"`, { retryable: true });
}
