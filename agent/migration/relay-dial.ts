import { connect, type TLSSocket } from "node:tls";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import type { MigrationId } from "../../model/ids.js";
import type { RelayChannel, RelayFrame } from "../../proto/relay-framing.js";
import { otherVersion, RELAY_SILENCE, RELAY_VERSION, type RelayLimits } from "./relay.js";
import { CLOSED, RELAY_TLS, RelayConnection } from "./relay-connection.js";

export interface DialOptions {
  readonly migration: MigrationId;
  readonly channel: RelayChannel;
  readonly address: string;
  readonly port: number;
  /** 32 bytes, of this move alone. */
  readonly secret: Uint8Array;
  /** Said in hello: by what the connection beside this one is known, and whether it is in clear. */
  readonly way: Uint8Array;
  readonly inClear: boolean;
  readonly clock: Clock;
  readonly limits: RelayLimits;
  /** Everything but hello, pings and pongs. */
  readonly onFrame: (frame: RelayFrame) => void;
  readonly onEnd: (cause: CareofError | null) => void;
}

/**
 * Connects one channel to the target's relay: TCP, TLS with the move's secret, hello both ways.
 * @throws CareofError `relay-failed` (retryable): no connection, wrong secret or no hello within `connectMs`; nothing is left behind, and `onEnd` may have been called.
 */
export async function dialRelay(options: DialOptions): Promise<RelayConnection> {
  const { address, port, migration, channel, way, inClear, secret, clock, limits } = options;
  const where = `the target's relay at ${address}:${String(port)}`;
  return new Promise<RelayConnection>((resolve, reject) => {
    let socket: TLSSocket | null = null;
    let greeted = false;
    const failed = (message: string, cause?: unknown): void => {
      limit.cancel();
      if (!greeted) socket?.destroy();
      reject(new CareofError("relay-failed", message, { retryable: true, cause }));
    };
    const limit = clock.after("relay-connect", limits.connectMs, () => { failed(`no answer of ${where}`); });
    const connected = connect({
      ...RELAY_TLS, host: address, port,
      pskCallback: () => ({ psk: secret, identity: migration }),
      // The key proves who the peer is; there is no certificate.
      checkServerIdentity: () => undefined,
    });
    socket = connected;
    const early = (cause: Error): void => { failed(`no connection to ${where}: ${cause.message}`, cause); };
    connected.once("error", early);
    connected.once("secureConnect", () => {
      connected.off("error", early);
      const connection: RelayConnection = new RelayConnection({
        socket: connected, clock, silenceMs: RELAY_SILENCE, highWaterBytes: limits.highWaterBytes,
        onFrame: (frame) => {
          if (frame.type !== "hello") {
            if (frame.type === "close" && !greeted) throw new CareofError("relay-failed", `${where} refuses: ${frame.detail}`);
            options.onFrame(frame);
            return;
          }
          if (frame.version !== RELAY_VERSION) throw new CareofError("relay-failed", otherVersion("target", frame.version));
          if (frame.migration !== migration || frame.channel !== channel) throw new CareofError("relay-failed", `the target's relay speaks of ${frame.migration}, ${frame.channel}`);
          if (frame.inClear !== inClear) throw new CareofError("relay-failed", `the target's stream is ${inClear ? "encrypted" : "in clear"}, and this move's is not`);
          connection.requireStrength();
          if (greeted) throw new CareofError("malformed-relay", "a second hello");
          greeted = true;
          limit.cancel();
          resolve(connection);
        },
        // What is said in a channel by the source waits for nobody: its hypervisor is not read here.
        onDrain: () => undefined,
        onEnd: (cause) => {
          // Before its hello an agent of another version hangs up without a word.
          failed(greeted ? "the target's relay hung up" : cause?.code === "relay-failed" && cause.message !== CLOSED ? cause.message : `${where} hung up without its hello: is its careof older than this one (relay version ${String(RELAY_VERSION)})?`, cause);
          options.onEnd(cause);
        },
      });
      connection.send({ type: "hello", version: RELAY_VERSION, migration, channel, way, inClear });
    });
  });
}
