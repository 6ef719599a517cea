import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import t from "tap";
import { OutsideVms } from "../../../agent/external/outside-vms.js";
import { Outbox } from "../../../agent/outbox.js";
import { outsideRecord } from "../../../agent/record-shapes.js";
import { Records } from "../../../agent/records.js";
import { VmNetwork } from "../../../agent/vm-network.js";
import { ipAddress, ipv4, mac } from "../../../model/address.js";
import { vmId } from "../../../model/ids.js";
import { ipInIp } from "../../../model/locator.js";
import { FakeHostTunnel } from "../../../net/tunnel-fake.js";
import { FakeVmPorts } from "../../../net/vm-port-fake.js";
import type { BindingUpdate } from "../../../proto/messages.js";
import { FakeClock } from "../../model/fake-clock.js";
import { A, FakeEyes, HOME, update } from "./rig.js";

await t.test("what was kept for a VM goes when this host is not listed for it any more, and none of what another has by then", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-external-"));
  t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  const clock = new FakeClock();
  const log = pino({ level: "silent" });
  const eyes = new FakeEyes();
  const ports = new FakeVmPorts();
  ports.external.add("tap-web1");
  const network = new VmNetwork({ ports, queueLength: 100, guestMtu: 1480 });
  const tunnel = new FakeHostTunnel({ careOf: ipv4("10.1.0.2"), homeAgents: [ipv4("192.0.2.1")], clock });
  const outbox = new Outbox({ registered: false, ask: () => Promise.reject(new Error("not connected")) }, clock, log);
  const records = new Records(join(directory, "external"), outsideRecord);
  const vms = new OutsideVms({ host: A, locator: ipInIp(ipAddress("10.1.0.2")), gatewayMac: mac("02:ca:0f:00:00:01"), eyes, network, records, outbox, tell: () => undefined, queueLength: 10, clock, log });
  t.teardown(() => { vms.close(); });
  await network.useTunnel(tunnel);
  const settled = async (): Promise<void> => {
    clock.advance(50);
    await new Promise(setImmediate);
  };
  const named = (name: string, listsHost = true): BindingUpdate => ({ ...update(A, 3), vm: vmId(name), spec: { ...update(A, 3).spec, vm: vmId(name), listsHost } });
  const removed = (name: string): BindingUpdate => ({ ...named(name, false), spec: { ...named(name, false).spec, homeAddresses: [], externalPort: "" } });
  vms.binding(named("web1"), true);
  eyes.change("tap-web1", 7, true);
  await settled();
  t.same([vms.known(), ports.list().map(({ name }) => name), tunnel.entries().length, [...records.all().keys()]], [["web1"], ["tap-web1"], 1, ["web1"]]);
  t.ok(vms.binding(removed("web1"), true), "it is one of these still, and nobody else is to make anything of it");
  await settled();
  t.same([vms.known(), ports.list(), tunnel.entries(), [...records.all().keys()]], [[], [], [], []], "nothing is left");
  t.ok(vms.binding(removed("web1"), false), "said twice");

  // Renamed, and the word of the new name comes first.
  vms.binding(named("web1"), true);
  await settled();
  vms.binding(named("web9"), true);
  await settled();
  vms.binding(removed("web1"), true);
  await settled();
  t.same([vms.known(), ports.list().map(({ name }) => name), tunnel.entries().map(({ home }) => home), [...records.all().keys()]], [["web9"], ["tap-web1"], [HOME], ["web9"]], "the new one has all of it");
});
