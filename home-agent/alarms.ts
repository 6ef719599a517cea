import type { HostId, VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { EventBus } from "./events.js";
import type { Metrics } from "./metrics.js";
import type { AlarmKind } from "./outcome.js";

export interface Alarm {
  readonly alarm: AlarmKind | "store" | "tunnel" | "home-lan";
  readonly vm: VmId | null;
  readonly hosts: readonly HostId[];
  readonly detail: string;
  readonly at: string;
}

/** How many are remembered for whoever asks later. */
const REMEMBERED = 100;

/** What wants a person: an error in the log, a count, an event. */
export class Alarms {
  readonly #log: Logger;
  readonly #metrics: Metrics;
  readonly #events: EventBus;
  readonly #recent: Alarm[] = [];

  constructor(options: { readonly log: Logger; readonly metrics: Metrics; readonly events: EventBus }) {
    this.#log = options.log;
    this.#metrics = options.metrics;
    this.#events = options.events;
  }

  raise(alarm: Alarm["alarm"], vm: VmId | null, hosts: readonly HostId[], detail: string, now: number): void {
    const raised: Alarm = { alarm, vm, hosts, detail, at: new Date(now).toISOString() };
    this.#recent.push(raised);
    if (this.#recent.length > REMEMBERED) this.#recent.shift();
    this.#log.error({ alarm, vm, hosts }, detail);
    this.#metrics.alarms.inc({ kind: alarm });
    this.#events.publish({ event: "alarm", data: { ...raised, vm: vm ?? "", hosts: [...hosts] } });
  }

  /** Oldest first. */
  recent(): readonly Alarm[] {
    return this.#recent;
  }
}
