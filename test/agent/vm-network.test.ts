import t from "tap";
import { VmNetwork } from "../../agent/vm-network.js";
import { ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { vmId } from "../../model/ids.js";
import { FakeHostTunnel } from "../../net/tunnel-fake.js";
import { FakeVmPorts } from "../../net/vm-port-fake.js";
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

async function host(): Promise<{ readonly ports: StubbornPorts; readonly tunnel: FakeHostTunnel; readonly network: VmNetwork }> {
  const ports = new StubbornPorts();
  const network = new VmNetwork({ ports, queueLength: 100, guestMtu: 1480 });
  const tunnel = new FakeHostTunnel({ careOf: ipv4("10.1.0.2"), homeAgents: [ipv4("192.0.2.1")], clock: new FakeClock() });
  await network.useTunnel(tunnel);
  return { ports, tunnel, network };
}

const names = (ports: StubbornPorts): readonly string[] => ports.list().map(({ name }) => name);

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
    network.makeRoom(VM);
    t.same([names(ports), tunnel.entries(), network.owners().get(HOME)], [[PORT], [], undefined], "the VM is not here, and its port is");
    await network.attach(specOf(), []);
    await network.tidy();
    t.same([names(ports), tunnel.entries().length], [[PORT], 1]);
    network.makeRoom(VM);
    network.makeRoom(VM);
    await network.tidy();
    t.same(names(ports), []);
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
