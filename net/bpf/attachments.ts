import { deleteFilter, listFilters, putFilter, type Direction } from "../netlink/filters.js";
import type { Netlink } from "../netlink/client.js";
import { close } from "../syscall.js";
import { loadProgram, type PinnedMaps } from "./loader.js";

/** Which programs hang where. Each program is loaded once per process; filters of an earlier process are replaced without a gap. */
export class Attachments {
  readonly #netlink: Netlink;
  readonly #maps: PinnedMaps;
  readonly #preference: number;
  readonly #programs = new Map<string, number>();
  /** Kernel's id of what we attached, by device and direction. */
  readonly #attached = new Map<string, number>();

  constructor(netlink: Netlink, maps: PinnedMaps, preference: number) {
    this.#netlink = netlink;
    this.#maps = maps;
    this.#preference = preference;
  }

  /** Asks the kernel whether ours is still there and puts it there if not. */
  ensure(device: number, direction: Direction, program: string): void {
    const id = this.#find(device, direction);
    if (id !== undefined && id === this.#attached.get(place(device, direction))) return;
    putFilter(this.#netlink, { device, direction, preference: this.#preference, name: `careof_${program}` }, this.load(program));
    this.#attached.set(place(device, direction), this.#find(device, direction) ?? 0);
  }

  /** The program's descriptor, which stays this object's. @throws CareofError `kernel-refused` */
  load(program: string): number {
    const descriptor = this.#programs.get(program) ?? loadProgram(program, this.#maps);
    this.#programs.set(program, descriptor);
    return descriptor;
  }

  /** Idempotent; the device may be gone. */
  remove(device: number, direction: Direction): void {
    deleteFilter(this.#netlink, { device, direction, preference: this.#preference });
    this.#attached.delete(place(device, direction));
  }

  /** Lets go of the programs; the filters keep theirs. */
  close(): void {
    for (const descriptor of this.#programs.values()) close(descriptor);
    this.#programs.clear();
  }

  #find(device: number, direction: Direction): number | undefined {
    return listFilters(this.#netlink, device).find((filter) => filter.direction === direction && filter.preference === this.#preference)?.program;
  }
}

function place(device: number, direction: Direction): string {
  return `${String(device)} ${direction}`;
}
