import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";
import type { Disk, DiskProgress, DiskSize, GuestDisks, MirrorOptions } from "./disks.js";
import type { GuestEvent, GuestStatus } from "./driver.js";
import { fileAt } from "./open-files.js";

export interface FakeDisksOptions {
  readonly disks: readonly Disk[];
  readonly clock: Clock;
  readonly emit: (event: GuestEvent) => void;
  readonly status: () => GuestStatus;
}

const LOOK_MS = millis(2);

/**
 * Copies whole files over real unix sockets: one connection per disk, its number, its length and its bytes, answered by one byte when they are in the target's file.
 * Then the connection stays, as a copy that is in sync does.
 */
export class FakeDisks implements GuestDisks {
  readonly #options: FakeDisksOptions;
  readonly #local: readonly { readonly disk: number; readonly path: string }[];
  #server: Server | null = null;
  readonly #served = new Set<Socket>();
  #copies: Socket[] = [];
  #inSync = 0;
  #copied = 0;
  #ready = false;

  constructor(options: FakeDisksOptions) {
    this.#options = options;
    this.#local = options.disks.flatMap(({ path, local }, disk) => (local ? [{ disk, path }] : []));
  }

  /** Somebody else has a hand on the disks. */
  get busy(): boolean {
    return this.#copies.length > 0;
  }

  async sizes(): Promise<readonly DiskSize[]> {
    this.#alive();
    return Promise.resolve(this.#local.map(({ disk, path }) => {
      const { size, blocks } = statSync(path);
      return { disk, virtualBytes: size, allocatedBytes: blocks * 512, file: path, open: fileAt(path) };
    }));
  }

  async exportTo(path: string): Promise<void> {
    this.#alive();
    if (this.#local.length === 0) return;
    rmSync(path, { force: true });
    const server = createServer((socket) => {
      this.#served.add(socket);
      const got: Buffer[] = [];
      let have = 0;
      let want = 9;
      socket.on("data", (chunk: Buffer) => {
        got.push(chunk);
        have += chunk.length;
        if (want === 9 && have >= 9) want += Number(Buffer.concat(got).readBigUInt64BE(1));
        if (have < want || want === 9) return;
        const all = Buffer.concat(got);
        const target = this.#local.find(({ disk }) => disk === all[0]);
        if (target === undefined) return;
        writeFileSync(target.path, all.subarray(9));
        socket.write("k");
      });
      socket.on("error", () => undefined);
      socket.on("close", () => { this.#served.delete(socket); });
    });
    this.#server = server;
    await new Promise<void>((resolve) => { server.listen(path, resolve); });
  }

  async endExports(): Promise<void> {
    this.#alive();
    this.#server?.close();
    this.#server = null;
    for (const socket of this.#served) socket.destroy();
    return Promise.resolve();
  }

  async mirror({ socket: path }: MirrorOptions): Promise<void> {
    this.#alive();
    this.#ready = false;
    this.#inSync = 0;
    this.#copied = 0;
    if (this.#local.length === 0) this.#tell("ready", "");
    for (const { disk, path: file } of this.#local) {
      const bytes = readFileSync(file);
      const socket = connect({ path });
      this.#copies.push(socket);
      await new Promise<void>((resolve, reject) => {
        socket.once("connect", resolve);
        socket.once("error", (cause) => { reject(new CareofError("qmp-refused", cause.message)); });
      });
      const head = Buffer.alloc(9);
      head[0] = disk;
      head.writeBigUInt64BE(BigInt(bytes.length), 1);
      socket.on("error", () => undefined);
      socket.once("data", () => {
        this.#copied += bytes.length;
        this.#inSync++;
        if (this.#inSync === this.#local.length) this.#tell("ready", "");
      });
      socket.once("close", () => {
        if (!this.#copies.includes(socket)) return;
        this.#copies = this.#copies.filter((each) => each !== socket);
        this.#tell("failed", "the target's export is gone");
      });
      socket.write(Buffer.concat([head, bytes]));
    }
  }

  async progress(): Promise<DiskProgress> {
    this.#alive();
    return Promise.resolve({ copied: this.#copied, total: this.#local.reduce((sum, { path }) => sum + statSync(path).size, 0) });
  }

  async finish(): Promise<void> {
    this.#alive();
    if (!this.#ready || this.#copies.length < this.#local.length) throw new CareofError("disk-failed", "the disks are not the same on both sides yet");
    await this.drop();
  }

  async drop(): Promise<void> {
    this.#alive();
    this.#ready = false;
    for (const socket of this.#copies.splice(0)) socket.end().destroy();
    return new Promise((resolve) => { this.#options.clock.after("fake-disks", LOOK_MS, resolve); });
  }

  die(): void {
    this.#server?.close();
    for (const socket of [...this.#served, ...this.#copies.splice(0)]) socket.destroy();
  }

  #tell(status: "ready" | "failed", detail: string): void {
    this.#ready = status === "ready";
    this.#options.emit({ kind: "disks", status, detail });
  }

  #alive(): void {
    if (this.#options.status() === "gone") throw new CareofError("guest-gone", "the guest has no process any more");
  }
}
