import { join } from "node:path";
import t from "tap";
import { HostAgent } from "../../agent/agent.js";
import { OutsideVms } from "../../agent/external/outside-vms.js";
import { HeartbeatRelay } from "../../agent/heartbeat-relay.js";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { outsideRecord } from "../../agent/record-shapes.js";
import { Records } from "../../agent/records.js";
import { Session } from "../../agent/session.js";
import { ipv4, mac, type Ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { millis, NEVER_BOUND } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { FakeHostTunnel } from "../../net/tunnel-fake.js";
import type { Body } from "../../proto/messages.js";
import { FakeClock } from "../model/fake-clock.js";
import { FakeEyes } from "./external/rig.js";
import { clock, Host, log, until } from "./rig.js";

const [FIRST, SECOND] = [ipv4("192.0.2.1"), ipv4("192.0.2.2")];

function registered(end: Ipv4): Body<"registered"> {
  return { kind: "registered", decision: { reason: "accepted", detail: "", epoch: NEVER_BOUND }, restartCounter: 1, tunnelAddresses: [end], keepAliveMs: millis(1000), lifetimeMs: millis(60_000), bindings: [], heartbeatPort: 4434 };
}

t.test("a tunnel that could not be opened is tried again at the next registration, one that works is not opened again", async (t) => {
  const host = new Host("host-a", "10.1.0.2", () => new FakeHypervisor({ clock }));
  t.teardown(() => host.end());
  await host.boot();
  const { careOf, driver, guests, migrations, network, outbox } = host;
  const asleep = new FakeClock();
  const opened: Ipv4[] = [];
  const remembered: Ipv4[] = [];
  let works = false;
  const openTunnel = (homeAgents: readonly Ipv4[]): FakeHostTunnel => {
    opened.push(...homeAgents);
    if (!works) throw new CareofError("no-link", "there is no interface", { retryable: true });
    return new FakeHostTunnel({ careOf, homeAgents, clock });
  };
  const agent: HostAgent = new HostAgent({
    host: host.name, careOf, pathMtu: 1500, memoryBytes: 0, restartCounter: 1, driver, network, guests, migrations, outbox, clock: asleep, log, openTunnel,
    outside: new OutsideVms({
      host: host.name, locator: ipInIp(careOf), gatewayMac: mac("02:ca:0f:00:00:01"), eyes: new FakeEyes(), network, outbox, records: new Records(join(host.directory, "external"), outsideRecord),
      tell: () => undefined, queueLength: 10, clock: asleep, log,
    }),
    session: new Session({
      url: "ws://192.0.2.1:4434/v1/agent", host: host.name, token: "never-said", clock: asleep, log, random: Math.random,
      register: () => agent.registration(), registered: () => undefined, lost: () => undefined, request: () => undefined,
    }),
    heartbeats: new HeartbeatRelay({ address: ipv4("127.0.0.1"), port: 0, perVmPerSecond: 1, clock: asleep, log, owners: () => new Map(), say: () => undefined }),
    knownTunnelEnds: [], rememberTunnelEnds: (ends) => { remembered.push(...ends); },
    paths: { set: () => undefined, probe: () => undefined, mtu: () => null, close: () => undefined },
  });
  agent.registered(registered(FIRST));
  await until("it is tried", () => opened.length === 1);
  works = true;
  agent.registered(registered(FIRST));
  agent.registered(registered(FIRST));
  agent.registered(registered(SECOND));
  await until("the last is there", () => remembered.includes(SECOND));
  t.same(opened, [FIRST, FIRST, SECOND]);
  t.same(remembered, [FIRST, SECOND], "only what works is kept for the next start");
  await agent.close();
});
