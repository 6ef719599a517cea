import { createHmac } from "node:crypto";
import type { VmId } from "../model/ids.js";
import type { Reason } from "../model/reasons.js";
import { NONCE_BYTES, type HeartbeatBody } from "../proto/heartbeat.js";

/** Heartbeats that may overtake each other. */
const WINDOW = 32;

/** What is remembered of one VM's heartbeats: one boot of its sender, and which of the newest sequences of it were seen. */
export interface ReplayState {
  readonly boot: string;
  /** Grows whenever another boot takes over, so that no heartbeat of an earlier one is ever fresh again. */
  readonly generation: number;
  readonly highest: number;
  /** What this boot echoes; kept, because computing it costs more than the rest of the check. */
  readonly nonce: Buffer;
  /** Bit i: `highest - i` was seen. */
  readonly seen: number;
}

export interface ReplayVerdict {
  readonly reason: Extract<Reason, "accepted" | "replayed" | "stale-nonce">;
  readonly state: ReplayState | null;
  /** What the sender echoes from now on. */
  readonly nonce: Uint8Array;
}

/**
 * The window of one VM (RFC 5944 §5.7 with nonces). A nonce stands for this process, the VM, the sender's boot and the generation: nothing recorded before a
 * restart of either side passes, and nothing has to be written down.
 */
export class ReplayWindow {
  readonly #secret: Uint8Array;

  /** `secret`: random, new at every start of the home agent. */
  constructor(secret: Uint8Array) {
    this.#secret = secret;
  }

  check(state: ReplayState | null, body: Pick<HeartbeatBody, "vm" | "bootId" | "sequence" | "nonce">): ReplayVerdict {
    const boot = Buffer.from(body.bootId).toString("hex");
    const same = state?.boot === boot;
    const generation = state === null ? 0 : same ? state.generation : state.generation + 1;
    const nonce = same ? state.nonce : this.#nonce(body.vm, boot, generation);
    if (body.nonce === null || !nonce.equals(body.nonce)) return { reason: "stale-nonce", state, nonce };
    if (!same) return { reason: "accepted", state: { boot, generation, nonce, highest: body.sequence, seen: 1 }, nonce };
    const ahead = body.sequence - state.highest;
    if (ahead > 0) return { reason: "accepted", state: { ...state, highest: body.sequence, seen: ahead >= WINDOW ? 1 : ((state.seen << ahead) | 1) >>> 0 }, nonce };
    const bit = -ahead < WINDOW ? (1 << -ahead) >>> 0 : 0;
    if (bit === 0 || (state.seen & bit) !== 0) return { reason: "replayed", state, nonce };
    return { reason: "accepted", state: { ...state, seen: (state.seen | bit) >>> 0 }, nonce };
  }

  #nonce(vm: VmId, boot: string, generation: number): Buffer {
    return createHmac("sha256", this.#secret).update(`${vm} ${boot} ${String(generation)}`).digest().subarray(0, NONCE_BYTES);
  }
}
