import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { VmNetwork } from "../../agent/vm-network.js";
import { ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { vmId } from "../../model/ids.js";
import { FakeHostTunnel } from "../../net/tunnel-fake.js";
import { FakeVmPorts } from "../../net/vm-port-fake.js";
import type { VmPort } from "../../net/vm-port.js";
import { FakeClock } from "../model/fake-clock.js";
import { HOME, specOf, VM } from "./rig.js";

const PORT = "co-web1";

/** A kernel that takes no port away while `refuses`. */
class StubbornPorts extends FakeVmPorts {
  refuses = true;

  override drop(name: string): Promise<void> {
    return this.refuses ? Promise.reject(new CareofError("kernel-refused", "device or resource busy")) : super.drop(name);
  }
}

/** As LinuxVmPorts: one after the other, and each takes its time. */
class SlowPorts extends FakeVmPorts {
  #last: Promise<void> = Promise.resolve();
  refusesNext = false;

  override set(ports: readonly VmPort[]): Promise<void> {
    return this.#inTurn(() => super.set(ports));
  }

  override put(port: VmPort): Promise<void> {
    return this.#inTurn(() => {
      const refused = this.refusesNext;
      this.refusesNext = false;
      return refused ? Promise.reject(new CareofError("kernel-refused", "no buffer space available")) : super.put(port);
    });
  }

  override drop(name: string): Promise<void> {
    return this.#inTurn(() => super.drop(name));
  }

  override giveAway(name: string): Promise<void> {
    return this.#inTurn(() => {
      if (this.list().some((port) => port.name === name)) this.external.add(name);
      return Promise.resolve();
    });
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const mine = this.#last.then(async () => {
      await sleep(2);
      await work();
    });
    this.#last = mine.catch(() => undefined);
    return mine;
  }
}

async function slowHost(): Promise<{ readonly ports: SlowPorts; readonly tunnel: FakeHostTunnel; readonly network: VmNetwork }> {
  const ports = new SlowPorts();
  const network = new VmNetwork({ ports, queueLength: 100, guestMtu: 1480 });
  const tunnel = new FakeHostTunnel({ careOf: ipv4("10.1.0.2"), homeAgents: [ipv4("192.0.2.1")], clock: new FakeClock() });
  await network.useTunnel(tunnel);
  return { ports, tunnel, network };
}

async function host(): Promise<{ readonly ports: StubbornPorts; readonly tunnel: FakeHostTunnel; readonly network: VmNetwork }> {
  const ports = new StubbornPorts();
  const network = new VmNetwork({ ports, queueLength: 100, guestMtu: 1480 });
  const tunnel = new FakeHostTunnel({ careOf: ipv4("10.1.0.2"), homeAgents: [ipv4("192.0.2.1")], clock: new FakeClock() });
  await network.useTunnel(tunnel);
  return { ports, tunnel, network };
}

const names = (ports: FakeVmPorts): readonly string[] => ports.list().map(({ name }) => name);

await t.test("a port that the kernel does not take away is known until it is gone", async (t) => {
  const ways: readonly (readonly [string, (network: VmNetwork) => Promise<void>])[] = [
    ["by being detached again", (network) => network.detach(VM)],
    ["by what is tried again from time to time", (network) => network.tidy()],
    ["with the next whole state", (network) => network.apply()],
  ];
  for (const [name, goes] of ways) {
    await t.test(name, async (t) => {
      const { ports, tunnel, network } = await host();
      await network.attach(specOf(), []);
      await t.rejects(network.detach(VM), { code: "kernel-refused" });
      t.same([names(ports), tunnel.entries(), network.owners().get(HOME)], [[PORT], [], undefined], "the VM is not here, and its port is");
      await t.rejects(network.tidy(), { code: "kernel-refused" });
      ports.refuses = false;
      await goes(network);
      t.same(names(ports), []);
    });
  }

  await t.test("and stays for a VM that is about to come back, which it is not kept for long", async (t) => {
    const { ports, tunnel, network } = await host();
    ports.refuses = false;
    await network.attach(specOf(), []);
    await network.makeRoom(VM);
    t.same([names(ports), tunnel.entries(), network.owners().get(HOME)], [[PORT], [], undefined], "the VM is not here, and its port is");
    await network.attach(specOf(), []);
    await network.tidy();
    t.same([names(ports), tunnel.entries().length], [[PORT], 1]);
    await network.makeRoom(VM);
    await network.makeRoom(VM);
    await network.tidy();
    t.same(names(ports), []);
    ports.external.add("tap-a");
    await network.attach(specOf(), [], "tap-a");
    await network.makeRoom(VM);
    t.same(names(ports), [], "somebody else's is let go of at once: the VM comes back to one of ours");
  });

  await t.test("and is not taken from a VM that has come back to it", async (t) => {
    const { ports, tunnel, network } = await host();
    await network.attach(specOf(), []);
    await t.rejects(network.detach(VM), { code: "kernel-refused" });
    await network.attach(specOf(), []);
    ports.refuses = false;
    await network.tidy();
    t.same([names(ports), tunnel.entries().length], [[PORT], 1]);
    await network.detach(VM);
    t.same([names(ports), tunnel.entries()], [[], []]);
  });
});

await t.test("an interface of somebody else's is let go of with the VM that is not listed here any more, or when another takes its place", async (t) => {
  const { ports, network } = await host();
  ports.external.add("tap-a");
  ports.external.add("tap-b");
  const spec = { ...specOf(), driver: "external" as const };
  network.setOutside(spec, [], true, () => ({ directly: 0, straggler: 0 }));
  await network.setOutsidePort(spec, "tap-a", null);
  await t.rejects(network.setOutsidePort(spec, "tap-b", "tap-a"), { code: "kernel-refused" });
  ports.refuses = false;
  await network.setOutsidePort(spec, "tap-b", null);
  t.same(names(ports), ["tap-b"], "the one of before has gone as well");
  ports.refuses = true;
  await t.rejects(network.dropOutside(spec.vm), { code: "kernel-refused" });
  ports.refuses = false;
  await network.tidy();
  t.same(names(ports), []);
});

await t.test("a renewal is one of ports and tunnel, of each VM for itself", async (t) => {
  const { ports, tunnel, network } = await host();
  ports.external.add("tap-a");
  await network.attach({ ...specOf(), vm: vmId("db1"), homeAddresses: [ipv4("198.51.100.8")] }, [], "tap-a");
  await network.attach(specOf(), []);
  const entries = tunnel.entries();
  await network.renew();
  t.same([names(ports), tunnel.entries()], [[PORT, "tap-a"], entries], "what is right stays");
  await ports.set([]);
  await tunnel.set([]);
  ports.external.delete("tap-a");
  await t.rejects(network.renew(), { code: "no-link", message: /tap-a/ });
  t.same([names(ports), tunnel.entries()], [[PORT], entries], "the one without its port is told of behind the others");
  ports.external.add("tap-a");
  await network.renew();
  t.same(names(ports), [PORT, "tap-a"]);
});

await t.test("what is asked for while the ports take their time is what comes out", async (t) => {
  const OTHER = vmId("db1");
  const other = { ...specOf(), vm: OTHER, homeAddresses: [ipv4("198.51.100.8")] };
  const cases: readonly (readonly [string, (network: VmNetwork) => readonly Promise<unknown>[], readonly string[]])[] = [
    ["a VM comes, and the whole state is set anew", (network) => [network.attach(specOf(), []), network.apply()], ["co-db1", PORT]],
    ["another one goes first", (network) => [network.detach(OTHER), network.attach(specOf(), []), network.apply()], [PORT]],
    ["it comes and goes", (network) => [network.attach(specOf(), []), network.detach(OTHER), network.apply()], [PORT]],
    ["one goes while all is set", (network) => [network.apply(), network.detach(OTHER)], []],
    ["and is to come back", (network) => [network.apply(), network.makeRoom(OTHER), network.tidy()], []],
  ];
  for (const [what, act, left] of cases) {
    const { ports, network } = await slowHost();
    await network.attach(other, []);
    await Promise.all(act(network));
    await network.tidy();
    t.same([...names(ports)].sort(), left, what);
  }
});

await t.test("a port that is given back while all is set anew is not taken for left over", async (t) => {
  const { ports, network } = await slowHost();
  await network.attach({ ...specOf(), vm: vmId("db1"), homeAddresses: [ipv4("198.51.100.8")] }, []);
  await network.attach(specOf(), []);
  const [, , port] = await Promise.all([network.detach(vmId("db1")), network.apply(), network.giveBack(VM)]);
  t.same([port, [...ports.external]], [PORT, [PORT]]);
});

await t.test("a port that was kept, and then could not be made what is wanted, goes", async (t) => {
  const { ports, network } = await slowHost();
  await network.attach(specOf(), []);
  await network.makeRoom(VM);
  ports.refusesNext = true;
  await t.rejects(network.attach(specOf(), []), { code: "kernel-refused" });
  t.same([names(ports), network.owners().get(HOME)], [[PORT], undefined]);
  await network.tidy();
  t.same(names(ports), []);
});
