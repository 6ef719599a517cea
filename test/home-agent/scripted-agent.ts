import { setTimeout as sleep } from "node:timers/promises";
import { WebSocket } from "ws";
import { ipAddress } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { epoch, hostId, migrationId, millis, NEVER_BOUND, vmId, type Epoch, type HostId, type MigrationId, type VmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { Channel, decision, type Answer } from "../../proto/channel.js";
import type { Body, Capabilities, Kind, MigrationRecord, VmReport } from "../../proto/messages.js";

export const CAPABILITIES: Capabilities = { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "10.0.0", accelerator: "tcg", dataPlane: "fake", memoryBytes: 1 << 30, localDisks: true, adopts: true, postcopy: true };

export interface ScriptedAgentOptions {
  readonly name: string;
  readonly token: string;
  readonly careOf: string;
  readonly port: number;
}

type Handler<K extends Kind> = (body: Body<K>, answer: Answer) => void;

export const ACCEPTED = decision("accepted");

/** A host agent that does what a test says, over the real channel. By default it takes every word and does the right thing. */
export class ScriptedAgent {
  readonly name: HostId;
  readonly #options: ScriptedAgentOptions;
  readonly #handlers = new Map<Kind, (body: Body, answer: Answer) => void>();
  #channel: Channel | null = null;
  #socket: WebSocket | null = null;
  /** Everything that came, but keep-alives. */
  readonly received: Body[] = [];
  /** VMs that it runs, and under which epoch. */
  readonly runs = new Map<VmId, Epoch>();
  records: MigrationRecord[] = [];
  keepAlive = true;

  constructor(options: ScriptedAgentOptions) {
    this.name = hostId(options.name);
    this.#options = options;
  }

  on<K extends Kind>(kind: K, handler: Handler<K>): void {
    this.#handlers.set(kind, (body, answer) => { if (isA(body, kind)) handler(body, answer); });
  }

  /** The last of a kind that came. */
  last<K extends Kind>(kind: K): Body<K> | undefined {
    return this.received.filter((body): body is Body & Body<K> => isA(body, kind)).at(-1);
  }

  count(kind: Kind): number {
    return this.received.filter((body) => body.kind === kind).length;
  }

  async until<K extends Kind>(kind: K, fits: (body: Body<K>) => boolean = () => true, ms = 30_000): Promise<Body<K>> {
    const end = Date.now() + ms;
    for (;;) {
      const found = this.received.find((body): body is Body & Body<K> => isA(body, kind) && fits(body));
      if (found !== undefined) return found;
      if (Date.now() > end) throw new Error(`${this.name}: no ${kind} came within ${String(ms)} ms; what came: ${this.received.map((body) => body.kind).join(" ")}`);
      await sleep(2);
    }
  }

  get connected(): boolean {
    return this.#channel !== null && !this.#channel.ended;
  }

  async connect(change: Partial<Body<"register">> = {}): Promise<Body<"registered">> {
    const { token, port, careOf } = this.#options;
    const socket = new WebSocket(`ws://127.0.0.1:${String(port)}/v1/agent`, "careof.v1", { headers: { authorization: `Bearer ${this.name}:${token}` } });
    this.#socket = socket;
    await new Promise<void>((resolve, reject) => {
      socket.once("open", resolve);
      socket.once("error", reject);
    });
    const channel = new Channel({
      transport: { send: (frame) => { socket.send(frame); }, close: (code, reason) => { socket.close(code, reason); } },
      clock: new SystemClock(),
      onRequest: (body, answer) => { this.#take(body, answer); },
    });
    this.#channel = channel;
    socket.on("message", (data: Buffer) => { channel.receive(data); });
    socket.on("close", () => { channel.end(new CareofError("closed", "closed")); });
    const locators = [ipInIp(ipAddress(careOf))];
    const vms = [...this.runs].map(([vm, basedOn]): VmReport => ({ vm, state: "runs", basedOn, locator: null, unreachable: false, evidence: "resync" }));
    const answer = await this.ask({
      kind: "register", version: 1, host: this.name, instance: "test", restartCounter: 1, locators, software: "scripted", vms, migrations: this.records, known: [],
      capabilities: CAPABILITIES,
      ...change,
    }, "registered");
    this.#beat(channel, answer.keepAliveMs);
    return answer;
  }

  async disconnect(): Promise<void> {
    const socket = this.#socket;
    if (socket === null || socket.readyState === socket.CLOSED) return;
    await new Promise<void>((resolve) => {
      socket.once("close", () => { resolve(); });
      socket.terminate();
    });
  }

  ask<K extends Kind>(body: Body, expect: K): Promise<Body<K>> {
    if (this.#channel === null) throw new Error("not connected");
    return this.#channel.ask(body, expect, millis(5000));
  }

  tell(body: Body): void {
    this.#channel?.tell(body);
  }

  async report(vm: string, state: VmReport["state"], basedOn: number, evidence: VmReport["evidence"] = "running"): Promise<Body<"decision">> {
    return this.ask({ kind: "vmReport", vm: vmId(vm), state, basedOn: epoch(basedOn), locator: null, unreachable: false, evidence }, "decision");
  }

  #beat(channel: Channel, period: number): void {
    const beat = async (): Promise<void> => {
      while (!channel.ended) {
        if (this.keepAlive) channel.tell({ kind: "keepAlive", at: millis(0) });
        await sleep(period, undefined, { ref: false });
      }
    };
    beat().catch((thrown: unknown) => { throw thrown; });
  }

  #take(body: Body, answer: Answer): void {
    if (body.kind !== "keepAlive") this.received.push(body);
    const handler = this.#handlers.get(body.kind);
    if (handler !== undefined) {
      handler(body, answer);
      return;
    }
    switch (body.kind) {
      case "startVm":
        this.runs.set(body.spec.vm, body.epoch);
        answer(ACCEPTED);
        break;
      case "stopVm":
        this.runs.delete(body.vm);
        answer(ACCEPTED);
        break;
      case "prepare":
        this.records.push({ migration: body.migration, side: "target", state: "prepared", peer: body.source });
        answer({ kind: "prepared", decision: { reason: "accepted", epoch: NEVER_BOUND, detail: "" }, relayAddress: "127.0.0.1", relayPort: 1, canLead: true });
        break;
      case "bindingUpdate":
        if (body.owner === this.name && this.runs.has(body.vm)) this.runs.set(body.vm, body.epoch);
        break;
      case "revoke":
        this.runs.delete(body.vm);
        this.records = [];
        answer(ACCEPTED);
        break;
      default: answer(ACCEPTED);
    }
  }
}

/** What a source and a target say of a move that goes well. The stamps make gaps of known size. */
export class Move {
  readonly migration: MigrationId;
  readonly #source: ScriptedAgent;
  readonly #target: ScriptedAgent;
  readonly #vm: VmId;
  readonly #epoch: Epoch;

  constructor(source: ScriptedAgent, target: ScriptedAgent, vm: string, reserved: number) {
    this.#source = source;
    this.#target = target;
    this.#vm = vmId(vm);
    this.#epoch = epoch(reserved);
    this.migration = migrationId(this.#vm, this.#epoch);
  }

  async leadReady(): Promise<Body<"decision">> {
    return this.#source.ask({ kind: "leadReady", migration: this.migration }, "decision");
  }

  /** STOP at 1000, the marker seen at `markerAt`. */
  async switchOver(markerAt: number | null = 998): Promise<Body<"decision">> {
    return this.#source.ask({ kind: "switchOver", migration: this.migration, stopAt: millis(1000), markerAt: markerAt === null ? null : millis(markerAt), hold: markerAt === null ? "no-gate" : "led" }, "decision");
  }

  async released(markerAt: number | null = 998, forced = false): Promise<Body<"decision">> {
    return this.#source.ask({ kind: "released", migration: this.migration, epoch: this.#epoch, stopAt: millis(1000), markerAt: markerAt === null ? null : millis(markerAt), bytes: 82_000_000, postcopy: false, forced }, "decision");
  }

  /** RESUME at 5000 of the target's clock. */
  async running(final: boolean, stamps: { readonly firstDeliverableAt?: number | null; readonly uplinkOpenAt?: number | null; readonly pauseMs?: number | null; readonly resumedAtSource?: number; readonly overflowed?: number } = {}): Promise<Body<"decision">> {
    const at = (value: number | null | undefined): ReturnType<typeof millis> | null => (value === null || value === undefined ? null : millis(value));
    this.#target.runs.set(this.#vm, this.#epoch);
    this.#source.runs.delete(this.#vm);
    return this.#target.ask({
      kind: "running", migration: this.migration, epoch: this.#epoch, resumeAt: millis(5000), firstDeliverableAt: at(stamps.firstDeliverableAt), uplinkOpenAt: at(stamps.uplinkOpenAt),
      pauseMs: at(stamps.pauseMs), pauseErrorMs: millis(0.5), final, overflowed: stamps.overflowed ?? 0, postcopy: false,
      resumedAtSource: at(stamps.resumedAtSource),
    }, "decision");
  }

  async sourceEnded(result: Body<"sourceEnded">["result"], reason: Body<"sourceEnded">["reason"] = "migrate-failed", detail = ""): Promise<Body<"decision">> {
    return this.#source.ask({ kind: "sourceEnded", migration: this.migration, result, reason, detail }, "decision");
  }

  async targetEnded(result: Body<"targetEnded">["result"], reason: Body<"targetEnded">["reason"] = "relay-failed", undelivered: number | null = null): Promise<Body<"decision">> {
    return this.#target.ask({ kind: "targetEnded", migration: this.migration, result, reason, detail: "", undelivered }, "decision");
  }
}

function isA<K extends Kind>(body: Body, kind: K): body is Body & Body<K> {
  return body.kind === kind;
}
