import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino, type Logger } from "pino";
import type { Test } from "tap";
import type { Eyes, Heard, Sight } from "../../../agent/external/eyes.js";
import type { Port } from "../../../agent/external/outside-vm.js";
import { OutsideVms } from "../../../agent/external/outside-vms.js";
import { Outbox } from "../../../agent/outbox.js";
import { outsideRecord } from "../../../agent/record-shapes.js";
import { Records } from "../../../agent/records.js";
import { VmNetwork } from "../../../agent/vm-network.js";
import { ipAddress, ipv4, mac } from "../../../model/address.js";
import { epoch, hostId, millis, vmId, type HostId } from "../../../model/ids.js";
import { drainToken } from "../../../model/lead-token.js";
import { ipInIp } from "../../../model/locator.js";
import type { Came, HeldFrame } from "../../../net/hold.js";
import type { Link } from "../../../net/netlink/links.js";
import type { Seen } from "../../../net/port-sight.js";
import { FakeWire } from "../../../net/tunnel-fake-wire.js";
import { FakeHostTunnel } from "../../../net/tunnel-fake.js";
import { FakeVmPorts } from "../../../net/vm-port-fake.js";
import { decision } from "../../../proto/channel.js";
import type { BindingUpdate, Body } from "../../../proto/messages.js";
import { FakeClock } from "../../model/fake-clock.js";

export const VM = vmId("web1");
export const [A, B, C] = [hostId("host-a"), hostId("host-b"), hostId("host-c")];
export const HOME = ipAddress("198.51.100.7");
export const PEER = { host: B, locator: ipInIp(ipAddress("10.2.0.2")) };
export const UP: Port = { name: "tap-web1", index: 7, carrier: true };
export const DOWN: Port = { ...UP, carrier: false };

export function update(owner: HostId | null, at: number, change: Partial<BindingUpdate> = {}): BindingUpdate {
  return {
    vm: VM, epoch: epoch(at), state: "bound", owner, forwardTo: null, forwardMs: millis(0), peers: [PEER],
    spec: { vm: VM, homeAddresses: [HOME], mac: mac("52:54:00:00:00:07"), driver: "external", qemu: null, externalPort: "tap-web*", listsHost: true }, ...change,
  };
}

/** A kernel in memory. */
export class FakeEyes implements Eyes {
  readonly hold = "co-hold";
  present: Link[] = [];
  waiting: HeldFrame[] = [];
  readonly passed: { readonly frame: Buffer; readonly to: string }[] = [];
  readonly sights: { readonly port: number; readonly sight: Sight; readonly seen: (what: Seen) => void }[] = [];
  heard: Heard | null = null;

  open(heard: Heard): void { this.heard = heard; }
  links(): readonly Link[] { return this.present; }
  link(name: string): Link | null { return this.present.find((each) => each.name === name) ?? null; }
  look(port: number, _spec: unknown, seen: (what: Seen) => void): Sight {
    const sight = { armed: false, close: (): void => undefined };
    this.sights.push({ port, sight, seen });
    return sight;
  }
  takeHeld(): readonly HeldFrame[] { return this.waiting.splice(0); }
  /** Of the device, since it was last asked. */
  full = 0;
  overflowed(): number {
    const { full } = this;
    this.full = 0;
    return full;
  }
  passOn(frame: Buffer, to: string): void { this.passed.push({ frame, to }); }
  close(): void { this.heard = null; }

  change(name: string, index: number, carrier: boolean): void {
    const link: Link = { name, index, carrier, up: true, hardware: 1, mac: "02:00:00:00:00:01", mtu: 1500, queueLength: 1000, dropped: 0, alias: "" };
    this.present = [...this.present.filter((each) => each.index !== index), link];
    this.heard?.link({ kind: "there", link });
  }
}

export interface Rig {
  readonly directory: string;
  readonly clock: FakeClock;
  readonly log: Logger;
  readonly said: Body[];
  /** The home agent's marker, passed on by host B. */
  readonly pass: (at: number) => unknown;
  readonly make: () => Promise<{ vms: OutsideVms; eyes: FakeEyes; tunnel: FakeHostTunnel; ports: FakeVmPorts; answer: (reason: Body<"decision">["reason"], at: number) => void }>;
}

/** Host A, whose agent `make` makes as often as it is called. */
export function rig(t: Test): Rig {
  const directory = mkdtempSync(join(tmpdir(), "careof-external-"));
  t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  const clock = new FakeClock();
  const log = pino({ level: "silent" });
  const said: Body[] = [];
  const wire = new FakeWire();
  const pass = (at: number): unknown => wire.carry(ipAddress("10.1.0.2"), { from: ipv4("10.2.0.2"), source: ipAddress("192.0.2.1"), destination: HOME, bytes: 0, marker: drainToken(epoch(at)) });
  const make: Rig["make"] = async () => {
    const eyes = new FakeEyes();
    eyes.present = [{ name: "tap-web1", index: 7, carrier: false, up: true, hardware: 1, mac: "02:00:00:00:00:01", mtu: 1500, queueLength: 1000, dropped: 0, alias: "" }];
    const ports = new FakeVmPorts();
    ports.external.add("tap-web1");
    const network = new VmNetwork({ ports, queueLength: 100, guestMtu: 1480 });
    const tunnel = new FakeHostTunnel({ careOf: ipv4("10.1.0.2"), homeAgents: [ipv4("192.0.2.1")], clock, wire });
    const answers: ((answer: Body<"decision">) => void)[] = [];
    const outbox = new Outbox({ registered: true, ask: (body) => { said.push(body); return new Promise((resolve) => { answers.push(resolve); }); } }, clock, log);
    const vms = new OutsideVms({ host: A, locator: ipInIp(ipAddress("10.1.0.2")), gatewayMac: mac("02:ca:0f:00:00:01"), eyes, network, records: new Records(join(directory, "external"), outsideRecord), outbox, tell: (body) => { said.push(body); }, queueLength: 10, clock, log });
    vms.recover();
    await network.useTunnel(tunnel);
    return { vms, eyes, tunnel, ports, answer: (reason, at) => { answers.shift()?.(decision(reason, "", epoch(at))); } };
  };
  return { directory, clock, log, said, pass, make };
}

export const held = (came: Came, tag: number): HeldFrame => ({ home: ipv4("198.51.100.7"), came, number: tag, frame: Buffer.concat([Buffer.alloc(14), Buffer.from([tag])]) });
