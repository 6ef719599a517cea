import type { Clock } from "../model/clock.js";
import { CareofError } from "../model/errors.js";
import type { HostId, VmId } from "../model/ids.js";
import type { Logger } from "../model/log.js";
import type { Reason } from "../model/reasons.js";
import { HeartbeatKey } from "../proto/heartbeat-key.js";
import { decodeEnvelope, signAnswer, verifyHeartbeat, type HeartbeatBody } from "../proto/heartbeat.js";
import type { Body } from "../proto/messages.js";
import type { BindingCache } from "./bindings/binding-cache.js";
import type { VmConfig } from "./config.js";
import type { Hosts } from "./hosts.js";
import type { Metrics } from "./metrics.js";
import type { ReplayState, ReplayWindow } from "./replay.js";

/** Heartbeats that a host hands on. */
export interface RelayedHeartbeats {
  /** The answer for the guest, if it gets one. */
  relayed(via: HostId, body: Body<"relayedHeartbeat">): Body<"heartbeatAnswer"> | null;
}

export interface HeartbeatOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly hosts: Hosts;
  readonly cache: BindingCache;
  readonly metrics: Metrics;
  readonly window: ReplayWindow;
}

/** Judges heartbeats, whichever way they came: who sent it (tag), whether it is new (window), what it means (binding). In this order, RFC 5944 §3.8.2.1. */
export class Heartbeats implements RelayedHeartbeats {
  readonly #options: HeartbeatOptions;
  readonly #keys = new Map<VmId, { readonly vm: VmConfig; readonly key: HeartbeatKey }>();
  readonly #windows = new Map<VmId, ReplayState>();

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  /** The datagram to send back; `null`: whoever sent that gets no answer. */
  direct(datagram: Uint8Array): Uint8Array | null {
    return this.#receive(datagram, null)?.answer ?? null;
  }

  relayed(via: HostId, body: Body<"relayedHeartbeat">): Body<"heartbeatAnswer"> | null {
    const result = this.#receive(body.envelope, via);
    return result === null ? null : { kind: "heartbeatAnswer", envelope: result.answer, port: body.port, address: body.address, vm: result.vm };
  }

  /** VMs that are not configured any more are forgotten, keys are read anew. */
  configure(): void {
    this.#keys.clear();
    for (const vm of this.#windows.keys()) if (this.#options.hosts.vm(vm) === null) this.#windows.delete(vm);
  }

  #receive(datagram: Uint8Array, via: HostId | null): { readonly vm: VmId; readonly answer: Uint8Array } | null {
    const { window, clock, hosts, cache } = this.#options;
    const body = this.#authenticate(datagram, via);
    if (body === null) return null;
    const vm = hosts.vm(body.vm);
    const key = this.#key(body.vm);
    if (vm === null || key === null) return null;
    const verdict = window.check(this.#windows.get(body.vm) ?? null, body);
    if (verdict.state !== null) this.#windows.set(body.vm, verdict.state);
    let { reason }: { reason: Reason } = verdict;
    if (reason === "accepted") {
      const owner = cache.state(body.vm)?.binding.owner ?? null;
      cache.dispatch(body.vm, { type: "heartbeat", via, ownerConnected: hosts.connected(owner), ownerPassesOn: hosts.mayPassOn(owner, clock.monotonic()) }).then(
        (decided) => { this.#count(body.vm, via, decided.reason); },
        (thrown: unknown) => { this.#options.log.error({ vm: body.vm, err: thrown }, "a heartbeat could not be judged"); },
      );
    } else {
      this.#count(body.vm, via, reason);
    }
    if (via !== null && !vm.hosts.includes(via)) reason = "not-listed";
    const answer = signAnswer({ reason, nonce: verdict.nonce, sequence: body.sequence, bootId: body.bootId, timeMs: clock.now() }, vm.keyId, key);
    return { vm: body.vm, answer };
  }

  #authenticate(datagram: Uint8Array, via: HostId | null): HeartbeatBody | null {
    try {
      const verified = verifyHeartbeat(decodeEnvelope(datagram), (vm, keyId) => {
        const config = this.#options.hosts.vm(vm);
        if (config === null) return "unknown-vm";
        return config.keyId === keyId ? (this.#key(vm) ?? "unknown-key") : "unknown-key";
      });
      if ("body" in verified) return verified.body;
      this.#count(null, via, verified.reason, verified.detail);
    } catch (thrown) {
      if (!(thrown instanceof CareofError)) throw thrown;
      this.#count(null, via, "malformed", thrown.message);
    }
    return null;
  }

  #key(vm: VmId): HeartbeatKey | null {
    const config = this.#options.hosts.vm(vm);
    if (config === null) return null;
    const known = this.#keys.get(vm);
    if (known?.vm === config) return known.key;
    const key = new HeartbeatKey(config.key);
    this.#keys.set(vm, { vm: config, key });
    return key;
  }

  #count(vm: VmId | null, via: HostId | null, reason: Reason, detail = ""): void {
    this.#options.metrics.heartbeats.inc({ reason });
    if (reason !== "accepted") this.#options.log.debug({ vm, host: via, reason, ...(detail === "" ? {} : { detail }) }, "heartbeat");
  }
}
