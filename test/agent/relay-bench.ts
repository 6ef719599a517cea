import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Test } from "tap";
import { RelayListener } from "../../agent/migration/relay-listener.js";
import { openSourceRelay } from "../../agent/migration/relay-source.js";
import { openTargetRelay } from "../../agent/migration/relay-target.js";
import { RELAY_LIMITS, type SourceRelay, type TargetRelay } from "../../agent/migration/relay.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { epoch, migrationId, millis, vmId } from "../../model/ids.js";

const clock = new SystemClock({ keepAlive: true });
export const migration = migrationId(vmId("web1"), epoch(7));
export const secret = randomBytes(32);

export interface Pair {
  readonly source: SourceRelay;
  readonly target: TargetRelay;
  /** Where the source's hypervisor writes. */
  readonly from: Socket;
  /** What the target's hypervisor accepted. */
  readonly to: Socket;
  /** A further connection of the hypervisors' stream, and one of the disks. */
  readonly further: () => Promise<Channel>;
  readonly disk: () => Promise<Channel>;
}

export interface Channel { readonly from: Socket; readonly to: Socket }

export interface Bench {
  readonly directory: string;
  readonly intruders: string[];
  listen(disks?: boolean): Promise<TargetRelay>;
  open(target: TargetRelay, options?: { readonly secret?: Uint8Array; readonly vm?: string; readonly clear?: boolean; readonly port?: number }): Promise<SourceRelay>;
  /** `through`: the port by which the source comes to the target's. `before`: the source's hypervisor has not connected yet. */
  pair(options?: { readonly through?: (port: number) => number; readonly before?: (target: TargetRelay) => Promise<void> }): Promise<Pair>;
}

export function bench(test: Test, clear = false): Bench {
  const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
  const incoming = join(directory, "incoming");
  const accepted: Socket[] = [];
  let arrived: (socket: Socket) => void = () => undefined;
  const server = (): Server => createServer({ allowHalfOpen: true }, (socket) => {
    accepted.push(socket);
    socket.on("error", () => socket.destroy());
    arrived(socket);
  });
  const hypervisor = server();
  const disks = server();
  const relays: (SourceRelay | TargetRelay)[] = [];
  const intruders: string[] = [];
  const listener = new RelayListener({ address: "127.0.0.1", port: 0, onIntruder: (detail) => intruders.push(detail), strangers: { perAddress: 8 } });
  test.teardown(() => {
    for (const relay of relays) relay.cut(new CareofError("shutting-down", "the test is over"));
    for (const socket of accepted) socket.destroy();
    hypervisor.close();
    disks.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const made: Bench = {
    directory, intruders,
    async listen(withDisks = true) {
      const diskSocket = join(directory, "nbd");
      if (!hypervisor.listening) await new Promise<void>((resolve) => { hypervisor.listen(incoming, resolve); });
      if (!disks.listening) await new Promise<void>((resolve) => { disks.listen(diskSocket, resolve); });
      const target = await openTargetRelay({ migration, secret, listener, channels: RELAY_LIMITS.maxChannels, socket: incoming, ...(withDisks ? { diskSocket } : {}), clear, clock, onIntruder: (detail) => intruders.push(detail) });
      relays.push(target);
      return target;
    },
    async open(target, options = {}) {
      const name = options.vm === undefined ? migration : migrationId(vmId(options.vm), epoch(7));
      const source = await openSourceRelay({
        migration: name, secret: options.secret ?? secret, address: "127.0.0.1", port: options.port ?? target.port, socket: join(directory, "outgoing"), diskSocket: join(directory, "disks"), clear: options.clear ?? clear, clock, limits: { connectMs: millis(2000) },
      });
      relays.push(source);
      return source;
    },
    async pair({ through = (port: number): number => port, before = () => Promise.resolve() } = {}) {
      const target = await made.listen();
      const channel = async (path: string): Promise<Channel> => {
        const coming = new Promise<Socket>((resolve) => { arrived = resolve; });
        const from = connect({ path, allowHalfOpen: true });
        from.on("error", () => from.destroy());
        return { from, to: await coming };
      };
      const coming = new Promise<Socket>((resolve) => { arrived = resolve; });
      const source = await made.open(target, { port: through(target.port) });
      await before(target);
      const from = connect({ path: source.socket, allowHalfOpen: true });
      from.on("error", () => from.destroy());
      from.write(".");
      const to = await coming;
      await once(to, "readable");
      to.read(1); // it was connected for this
      return { source, target, from, to, further: () => channel(source.socket), disk: () => channel(source.diskSocket) };
    },
  };
  return made;
}

export async function bytesFrom(socket: Socket, length: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let have = 0;
  return await new Promise((resolve) => {
    const take = (part: Buffer): void => {
      parts.push(part);
      have += part.length;
      if (have < length) return;
      socket.off("data", take);
      resolve(Buffer.concat(parts));
    };
    socket.on("data", take).resume();
  });
}

export const pause = async (ms: number): Promise<void> => { await new Promise((resolve) => setTimeout(resolve, ms)); };
export const ended = async (socket: Socket): Promise<void> => { await new Promise<void>((resolve) => { socket.resume().once("end", resolve).once("close", resolve); }); };
