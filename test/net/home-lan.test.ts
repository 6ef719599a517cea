import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { ipAddress, ipv4, mac, type Ipv4 } from "../../model/address.js";
import type { Arrival } from "../../net/arrival-sight.js";
import { FRAMES_PER_TURN } from "../../net/bounded-reads.js";
import { FakeHomeLan } from "../../net/home-lan-fake.js";
import { LinuxHomeLan, stopAnswering } from "../../net/home-lan-linux.js";
import type { HomeLan, HomeLanState } from "../../net/home-lan.js";
import { Namespaces } from "./lab/namespaces.js";
import { arpRequest, ETHERTYPE } from "./lab/packets.js";
import { HomeSegment, macOf } from "./lab/home-segment.js";
import { Wire } from "./lab/wire.js";

const [one, two, three] = [ipv4("198.51.100.7"), ipv4("198.51.100.8"), ipv4("198.51.100.9")];
const VM = mac("52:54:00:00:00:07");

t.setTimeout(120_000); // a busy machine

/** A home LAN of some kind, and what the test does to it. */
interface Bench {
  readonly make: (maxEntries?: number) => HomeLan;
  readonly within: <T>(work: () => T) => T;
  /** Gratuitous ARPs that neighbours have heard since the last call: which address is at whose Ethernet address; `us` for this machine's. */
  readonly heard: () => Promise<readonly string[]>;
  readonly become: (made: HomeLan, state: HomeLanState) => void;
  /** A station on the LAN says that it is there. */
  readonly arrive: (arrival: Arrival) => void;
}

async function contract(t: Test, { make, within, heard, become, arrive }: Bench): Promise<void> {
  const made = within(() => make());
  t.same(within(() => made.answered()), []);
  t.same(within(() => made.set([one, two])), [one, two], "new ones are named");
  t.same(within(() => made.set([two, one])), [], "once or twice");
  t.same(within(() => made.set([one, three])), [three]);
  t.same(within(() => made.answered()), [one, three]);
  t.equal(within(() => made.put(one)), false);
  t.equal(within(() => made.put(two)), true);
  t.equal(within(() => made.put(two)), false);
  t.equal(within(() => made.drop(three)), true);
  t.equal(within(() => made.drop(three)), false);
  t.same(within(() => made.answered()), [one, two]);

  const six = ipAddress("2001:db8::7");
  t.throws(() => within(() => made.set([three, six])), { code: "unsupported-address" });
  t.throws(() => within(() => made.put(six)), { code: "unsupported-address" });
  t.throws(() => { within(() => { made.announce(six, null); }); }, { code: "unsupported-address" });
  t.throws(() => within(() => made.set([three, three])), { code: "malformed-entries" });
  t.throws(() => within(() => made.set(Array.from({ length: 6 }, (_, n) => ipv4(`198.51.100.${String(30 + n)}`)))), { code: "too-many" });
  t.same(within(() => made.answered()), [one, two], "bad input changes nothing");
  within(() => made.set([one, two, three, ipv4("198.51.100.10"), ipv4("198.51.100.11")]));
  t.throws(() => within(() => made.put(ipv4("198.51.100.12"))), { code: "too-many" });
  within(() => made.set([one, two]));

  await heard();
  within(() => { made.announce(one, null); });
  within(() => { made.announce(two, VM); });
  t.same(await heard(), [`${one} us`, `${two} ${VM}`]);

  const states: HomeLanState[] = [];
  const arrivals: Arrival[] = [];
  within(() => { made.watch({ changed: (state) => { states.push(state); }, arrived: (arrival) => { arrivals.push(arrival); }, missed: () => undefined, failed: (error) => { throw error; } }); });
  within(() => { made.announce(one, null); });
  arrive({ mac: VM, home: one });
  arrive({ mac: VM, home: null });
  for (const end = Date.now() + 20_000; arrivals.length < 2 && Date.now() < end;) await sleep(5);
  t.same(arrivals, [{ mac: VM, home: one }, { mac: VM, home: null }], "others, not ourselves");
  become(made, "unusable");
  for (const end = Date.now() + 20_000; states.length < 1 && Date.now() < end;) await sleep(5);
  t.same(states, ["unusable"]);
  t.throws(() => { within(() => { made.announce(one, null); }); }, { code: "kernel-refused" });
  become(made, "usable");
  for (const end = Date.now() + 20_000; states.length < 2 && Date.now() < end;) await sleep(5);
  t.same(states, ["unusable", "usable"]);
  arrive({ mac: VM, home: two });
  for (const end = Date.now() + 20_000; arrivals.length < 3 && Date.now() < end;) await sleep(5);
  t.same(arrivals.at(2), { mac: VM, home: two }, "after that as before");
  t.same(within(() => made.set([one, two])), [one, two], "what went with the interface is put again, and said to be new");

  within(() => { made.close({ keep: true }); });
  within(() => { made.close({ keep: true }); });
}

t.test("the fake", async (t) => {
  const fakes: FakeHomeLan[] = [];
  await contract(t, {
    make: (maxEntries = 5) => {
      const made = new FakeHomeLan({ interface: "home0", maxEntries, runDir: "" });
      fakes.push(made);
      return made;
    },
    within: (work) => work(),
    heard: () => Promise.resolve(fakes.flatMap((fake) => fake.announced.splice(0)).map(({ home, owner }) => `${home} ${owner ?? "us"}`)),
    become: (_made, state) => { for (const fake of fakes) fake.become(state); },
    arrive: (arrival) => { for (const fake of fakes) fake.arrive(arrival); },
  });
  const gone = new FakeHomeLan({ interface: "home0", maxEntries: 5, runDir: "" }, [one]);
  t.same(gone.set([one, two]), [two], "what an earlier process answered for is not new");
  gone.become(null);
  t.throws(() => gone.set([]), { code: "no-link" });
  t.throws(() => gone.put(one), { code: "no-link" });
});

t.test("Linux", async (t) => {
  const all = new Namespaces();
  t.teardown(() => { all.destroy(); });
  const machine = all.make("h");
  const far = all.make("far");
  all.connect(machine, "uplink", far, "eth0");
  machine.ip("address add 192.0.2.1/24 dev uplink");
  const segment = new HomeSegment(all, machine);
  const [neighbour] = segment.neighbours;
  if (neighbour === undefined) throw new Error("a neighbour is needed");
  const wire = new Wire(neighbour.net, "eth0");
  const uplink = new Wire(far, "eth0");
  const us = (): string => macOf(machine, "home0");
  const within = <T>(work: () => T): T => machine.within(work);
  const runDir = mkdtempSync(join(tmpdir(), "careof-home-lan-"));
  t.teardown(() => { rmSync(runDir, { recursive: true, force: true }); });
  const make = (maxEntries = 5): LinuxHomeLan => new LinuxHomeLan({ interface: "home0", maxEntries, runDir });

  await t.test("the contract", (t) => contract(t, {
    make, within,
    heard: async () => {
      const found: string[] = [];
      await wire.frame((bytes) => {
        const arp = gratuitous(bytes);
        if (arp !== null) found.push(`${arp.address} ${arp.owner === us() ? "us" : arp.owner}`);
        return null;
      }, 200);
      return found;
    },
    become: (_made, state) => { machine.ip(`link set home0 ${state === "usable" ? "up" : "down"}`); },
    arrive: ({ home }) => {
      // Beside it what is no arrival: a question, a probe, and somebody who says it of somebody else.
      wire.send(arpRequest({ mac: VM, address: one }, two));
      wire.send(arpRequest({ mac: VM, address: ipv4("0.0.0.0") }, one));
      const foreign = arpRequest({ mac: VM, address: one }, one);
      foreign.writeUInt8(0x99, 11);
      wire.send(foreign);
      const group = arpRequest({ mac: VM, address: one }, one);
      for (const at of [6, 22]) group.writeUInt8(0x53, at);
      wire.send(group);
      const frame = arpRequest({ mac: VM, address: home ?? ipv4("0.0.0.0") }, home ?? ipv4("0.0.0.0"));
      if (home === null) frame.writeUInt16BE(ETHERTYPE.rarp, 12);
      wire.send(frame);
    },
  }));

  /** Whose Ethernet address a neighbour hears when it asks; null for no answer. */
  const asks = async (on: Wire, from: Ipv4, wanted: Ipv4, limit: number): Promise<string | null> => {
    on.forget();
    on.send(arpRequest({ mac: on.mac, address: from }, wanted));
    return on.frame((bytes) => (bytes.readUInt16BE(12) === ETHERTYPE.arp && bytes.readUInt16BE(20) === 2 && address(bytes, 28) === wanted ? hex(bytes, 22) : null), limit);
  };
  const away = (home: Ipv4): string => `route replace ${home}/32 dev uplink`;

  await t.test("who is answered, and who is not", async (t) => {
    const made = within(() => make());
    within(() => made.set([one, two]));
    machine.ip(away(one));
    far.ip(`address add ${two}/32 dev eth0`);
    t.equal(await asks(wire, neighbour.address, one, 2000), us(), "for a VM that is away");
    t.equal(await asks(wire, neighbour.address, two, 100), null, "its route does not lead elsewhere: no");
    t.equal(await asks(wire, neighbour.address, three, 100), null, "nobody's");
    t.equal(await asks(wire, ipv4("0.0.0.0"), one, 100), null, "a probe by who may be the owner (RFC 5227 §2.1)");
    t.equal(await asks(wire, one, one, 100), null, "the owner's own announcement");
    t.equal(await asks(uplink, ipv4("192.0.2.9"), one, 100), null, "never on the uplink");
    machine.ip(away(two));
    t.equal(await asks(uplink, ipv4("192.0.2.9"), two, 100), null);
    t.equal(machine.exec("sysctl", "-n", "net.ipv4.neigh.home0.proxy_delay").trim(), "0");
    t.equal(machine.exec("sysctl", "-n", "net.ipv4.conf.home0.send_redirects").trim(), "0");
    t.equal(within(() => made.drop(one)), true);
    t.equal(await asks(wire, neighbour.address, one, 100), null, "and not any more");
    within(() => { made.close({ keep: false }); });
    t.equal(machine.exec("ip", "neigh", "show", "proxy").trim(), "");
  });

  await t.test("a neighbour that has another Ethernet address now is learned all the same", async (t) => {
    const made = within(() => make());
    within(() => made.set([one]));
    within(() => { made.watch({ changed: () => undefined, arrived: () => undefined, missed: () => undefined, failed: (error) => { throw error; } }); });
    machine.ip("neigh replace 198.51.100.40 lladdr 02:00:00:00:00:01 dev home0 nud reachable", "neigh replace 198.51.100.41 lladdr 02:00:00:00:00:01 dev home0 nud permanent");
    const moved = mac("02:00:00:00:00:02");
    for (const host of [40, 41, 42]) {
      const frame = arpRequest({ mac: moved, address: ipv4(`198.51.100.${String(host)}`) }, ipv4(`198.51.100.${String(host)}`));
      wire.send(frame);
    }
    const entries = (): string => machine.exec("ip", "neigh", "show", "dev", "home0");
    for (const end = Date.now() + 20_000; !/\.40 lladdr 02:00:00:00:00:02/.test(entries()) && Date.now() < end;) await sleep(20);
    t.match(entries(), /\.40 lladdr 02:00:00:00:00:02/);
    t.match(entries(), /\.41 lladdr 02:00:00:00:00:01 PERMANENT/, "what somebody stated stays");
    t.notMatch(entries(), /\.42 /, "who is not asked for is not learned");
    machine.ip("neigh flush dev home0", "neigh del 198.51.100.41 dev home0");
    within(() => { made.close({ keep: false }); });
    t.equal(machine.exec("sysctl", "-n", "net.ipv4.conf.home0.drop_gratuitous_arp").trim(), "0", "and the kernel does it again by itself");
  });

  await t.test("what a crash left goes, what others set stays", (t) => {
    machine.ip("neigh add proxy 198.51.100.77 dev home0", "neigh add proxy 198.51.100.78 dev uplink protocol 202");
    const crashed = within(() => make());
    within(() => crashed.set([one, two]));
    const next = within(() => make());
    t.same(within(() => next.answered()), [one, two]);
    t.same(within(() => next.set([two, three])), [three], "what is there still is not new");
    t.match(machine.exec("ip", "neigh", "show", "proxy"), /198\.51\.100\.77 dev home0/);
    t.notMatch(machine.exec("ip", "neigh", "show", "proxy"), /198\.51\.100\.78/, "ours on another interface");
    t.equal(within(() => next.put(one)), true);
    for (const each of [crashed, next]) within(() => { each.close({ keep: true }); });
    t.equal(within(() => stopAnswering(runDir)), 3, "a home agent that routes takes them away");
    t.equal(within(() => stopAnswering(runDir)), 0);
    t.equal(machine.exec("ip", "neigh", "show", "proxy").trim().split("\n").length, 1);
    t.end();
  });

  await t.test("a storm of arrivals: a few are looked at in each turn, the rest is counted", async (t) => {
    const made = within(() => make());
    let [seen, missed, turn, most, turns] = [0, 0, 0, 0, 0];
    within(() => {
      made.watch({
        changed: () => undefined,
        arrived: () => {
          if (turn === 0) setImmediate(() => {
            most = Math.max(most, turn);
            turns += 1;
            turn = 0;
          });
          turn += 1;
          seen += 1;
        },
        missed: (frames) => { missed += frames; }, failed: (error) => { throw error; },
      });
    });
    const frame = arpRequest({ mac: VM, address: one }, one);
    const sent = 4000;
    for (let i = 0; i < sent; i++) wire.send(frame);
    for (const end = Date.now() + 20_000; seen + missed < sent && Date.now() < end;) await sleep(20);
    t.comment(`${String(seen)} looked at in ${String(turns)} turns, ${String(missed)} missed`);
    t.equal(seen + missed, sent);
    t.ok(most <= FRAMES_PER_TURN, `${String(most)} in one turn`);
    t.ok(missed > sent / 2);
    within(() => { made.close({ keep: false }); });
  });

  await t.test("the interface's settings are as they were when it is not used any more, whoever used it", (t) => {
    const setting = (name: string): string => machine.exec("sysctl", "-n", `net.ipv4.${name}`).trim();
    const settings = (device: string): string[] => [setting(`conf.${device}.drop_gratuitous_arp`), setting(`neigh.${device}.proxy_delay`)];
    all.connect(machine, "home1", far, "far1");
    machine.exec("sysctl", "-w", "net.ipv4.neigh.home0.proxy_delay=40", "net.ipv4.conf.home1.drop_gratuitous_arp=1", "net.ipv4.neigh.home1.proxy_delay=44");
    const use = (device: string): void => {
      const made = within(() => new LinuxHomeLan({ interface: device, maxEntries: 5, runDir }));
      within(() => made.set([]));
      within(() => { made.close({ keep: true }); });
    };
    use("home0");
    t.same([settings("home0"), settings("home1")], [["1", "0"], ["1", "44"]]);
    use("home0");
    use("home1");
    t.same([settings("home0"), settings("home1")], [["0", "40"], ["1", "0"]], "another interface in the configuration");
    use("home0");
    t.same([settings("home0"), settings("home1")], [["1", "0"], ["1", "44"]], "what others have switched on stays on");
    machine.exec("sysctl", "-w", "net.ipv4.neigh.home0.proxy_delay=12");
    t.equal(within(() => stopAnswering(runDir)), 0, "routed: nobody was answered for");
    t.same([settings("home0"), settings("home1")], [["0", "12"], ["1", "44"]], "what somebody has changed since stays so");
    t.same(readdirSync(runDir), []);
    machine.ip("link del home1");
    t.end();
  });

  await t.test("an interface that is not there, or not Ethernet, or goes", (t) => {
    t.throws(() => within(() => new LinuxHomeLan({ interface: "nowhere0", maxEntries: 1, runDir })), { code: "no-link", retryable: true });
    t.throws(() => within(() => new LinuxHomeLan({ interface: "lo", maxEntries: 1, runDir })), { code: "unsupported" });
    all.connect(machine, "brief", far, "brief");
    const made = within(() => new LinuxHomeLan({ interface: "brief", maxEntries: 3, runDir }));
    within(() => made.set([one]));
    machine.ip("link del brief");
    t.throws(() => within(() => made.set([one])), { code: "no-link" });
    t.throws(() => { within(() => { made.announce(one, null); }); }, { code: "no-link" });
    t.equal(within(() => made.drop(one)), false);
    within(() => { made.close({ keep: false }); });
    t.end();
  });
});

function hex(bytes: Buffer, at: number): string {
  return [...bytes.subarray(at, at + 6)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

function address(bytes: Buffer, at: number): string {
  return [...bytes.subarray(at, at + 4)].join(".");
}

/** Broadcast, a request, sender and target the same, and from the sending interface's own address. */
function gratuitous(bytes: Buffer): { readonly address: string; readonly owner: string } | null {
  if (bytes.length < 42 || bytes.readUInt16BE(12) !== ETHERTYPE.arp || bytes.readUInt16BE(20) !== 1 || hex(bytes, 0) !== "ff:ff:ff:ff:ff:ff") return null;
  return address(bytes, 28) === address(bytes, 38) ? { address: address(bytes, 28), owner: hex(bytes, 22) } : null;
}
