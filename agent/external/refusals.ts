import type { Clock, Timer } from "../../model/clock.js";
import { millis, type Millis, type VmId } from "../../model/ids.js";
import type { Logger } from "../../model/log.js";
import type { Link } from "../../net/netlink/links.js";
import type { DataPath } from "./data-path.js";
import type { Eyes } from "./eyes.js";
import type { OutsideVm, Port } from "./outside-vm.js";

/** An interface whose other end is being taken down takes no packets some milliseconds before it has no carrier. One that still has it then is full. */
const FULL_AFTER = millis(30);
const LOOK_AGAIN = millis(2);

/** A VM whose port may refuse packets. */
export interface Refuser {
  readonly state: OutsideVm;
  readonly path: DataPath;
}

export interface RefusalsRim {
  readonly clock: Clock;
  readonly log: Logger;
  readonly eyes: Pick<Eyes, "link">;
  takeHeld(): void;
  /** The port has gone, or has no carrier: `now` is what has its name. */
  changed(port: Port, now: Link | null): void;
}

/** A port that takes nothing has gone, which the kernel's news may tell milliseconds later; or it is full. */
export class Refusals {
  readonly #rim: RefusalsRim;
  /** Not looked at since. */
  readonly #refusers = new Map<VmId, Refuser>();
  /** Refuse since then and still have a carrier: they are looked at again. */
  readonly #again = new Map<VmId, { readonly since: Millis; readonly timer: Timer }>();

  constructor(rim: RefusalsRim) {
    this.#rim = rim;
  }

  /** Idempotent: packets of it have come back, perhaps. */
  add(refuser: Refuser): void {
    if (refuser.path.refused) this.#refusers.set(refuser.state.spec.vm, refuser);
  }

  look(): void {
    for (const [vm, refuser] of this.#refusers) {
      this.#refusers.delete(vm);
      this.#lookAt(refuser);
    }
  }

  forget(vm: VmId): void {
    this.#refusers.delete(vm);
    this.#again.get(vm)?.timer.cancel();
    this.#again.delete(vm);
  }

  #lookAt(refuser: Refuser): void {
    const { clock, eyes, log } = this.#rim;
    const { path, state: { port, spec: { vm } } } = refuser;
    const before = this.#again.get(vm);
    this.forget(vm);
    if (port === null || !path.refused) return;
    const link = eyes.link(port.name);
    if (link?.index !== port.index || !link.carrier) {
      this.#rim.changed(port, link);
      return;
    }
    if (path.present(() => { this.#rim.takeHeld(); })) return;
    const since = before?.since ?? clock.monotonic();
    if (clock.monotonic() - since >= FULL_AFTER) {
      log.warn({ vm, port: port.name, dropped: path.held.size }, "a port refuses packets though it is there: it is full");
      path.full(() => { this.#rim.takeHeld(); });
    } else this.#again.set(vm, { since, timer: clock.after("refusing", LOOK_AGAIN, () => { this.#lookAt(refuser); }) });
  }
}
