import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { addressKey } from "../../model/address.js";
import { Holds } from "../../net/bpf/holds.js";
import { PinnedMaps } from "../../net/bpf/loader.js";
import { decodeHostRecord } from "../../net/bpf/records.js";
import { HoldDevice, type HeldFrame } from "../../net/hold.js";
import type { HostEntry, SentOn } from "../../net/tunnel.js";
import { TEST_PROTOCOL } from "./lab/packets.js";
import { bound, CORRESPONDENT, deliver, DRIVERS, GATEWAY, Topology, type Guest } from "./lab/topology.js";
import { Wire } from "./lab/wire.js";

/*
 * How a hold ends: with packets that come at the worst moments, which a test can have only where it is called.
 */
const topology = new Topology();
const { a, b, homeAgent } = topology;
const [one, two] = topology.guests as [Guest, Guest];
for (const guest of [one, two]) guest.on(a);
await a.net.within(() => a.ports.set([topology.port(one), topology.port(two)]));
const lan = new Wire(topology.correspondent, "lan");
const lanRouter = new Wire(homeAgent, "lan").mac;
const guest = new Wire(one.on(a), "eth0");
const neighbour = new Wire(two.on(a), "eth0");
const towardsB = new Wire(topology.router, "toa");
const hold = a.net.within(() => new HoldDevice("co-hold", 100));
t.teardown(() => {
  a.net.within(() => { hold.close(); });
  return topology.close();
});
t.setTimeout(120_000);

const all: HostEntry = { ...deliver(one), hold: { device: hold.name, from: "all" } };
const atPort: HostEntry = { ...deliver(one), hold: { device: hold.name, from: "port" } };
const NAP = new Int32Array(new SharedArrayBuffer(4));
const counted = (): number => {
  const { downPackets, forwardedPackets } = a.tunnel.counters(one.home);
  return downPackets + forwardedPackets;
};

/** Packets that are numbered, each of which is with the data plane of host A when this returns. */
class Sender {
  sent = 0;

  send(): void {
    const before = counted();
    this.sent++;
    lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload: Buffer.from(`number ${String(this.sent).padStart(4, "0")}`) });
    const end = performance.now() + 2000;
    while (counted() === before && performance.now() < end) Atomics.wait(NAP, 0, 0, 1);
  }
}

/** What waits, and how far it was sent on: to the port. */
class Taker {
  taken: SentOn = { directly: 0, straggler: 0 };
  found = 0;

  sendOn(): SentOn {
    for (const frame of a.net.within(() => hold.read())) this.#take(frame);
    return this.taken;
  }

  #take({ came, frame, number }: HeldFrame): void {
    if (came === "directly" || came === "straggler") this.taken = { ...this.taken, [came]: number };
    this.found++;
    a.net.within(() => { a.ports.sendFrame(one.port, frame); });
  }
}

/** Numbers in the order in which they arrived. */
async function arrived(wire: Wire, count: number): Promise<number[]> {
  const found: number[] = [];
  for (let turn = 0; turn < 200 && found.length < count; turn++) {
    for (let bytes = wire.next(); bytes !== null; bytes = wire.next()) {
      const number = /number (\d{4})/.exec(bytes.toString("latin1"))?.[1];
      if (number !== undefined) found.push(Number(number));
    }
    await sleep(5);
  }
  return found;
}

const upTo = (count: number): number[] => Array.from({ length: count }, (_, n) => n + 1);

t.beforeEach(async () => {
  await homeAgent.within(() => topology.home.set([bound(one, a)]));
  await a.net.within(() => a.tunnel.set([]));
  hold.read();
  await a.net.within(() => a.tunnel.set([all]));
  await sleep(20);
  for (const wire of [guest, towardsB]) wire.forget();
});

t.test("held packets are numbered, by their kind and address", async (t) => {
  const sender = new Sender();
  for (let n = 0; n < 5; n++) sender.send();
  const frames: HeldFrame[] = [];
  for (let turn = 0; turn < 100 && frames.length < 5; turn++) {
    frames.push(...a.net.within(() => hold.read()));
    await sleep(5);
  }
  t.same(frames.map(({ came, home, number }) => ({ came, home, number })), upTo(5).map((number) => ({ came: "directly", home: one.home, number })));
  t.match({ driver: a.tunnel.driver }, { driver: DRIVERS.hosts });
});

t.test("what comes behind the last look waits behind what waits, until everything has been sent on", async (t) => {
  for (const [name, entry] of [["to the port", deliver(one)], ["to a port that may refuse", atPort]] as const) {
    a.net.within(() => { a.tunnel.put(all); });
    guest.forget();
    const [sender, taker] = [new Sender(), new Taker()];
    taker.taken = { directly: 0, straggler: 0 };
    for (let n = 0; n < 3; n++) sender.send();
    let calls = 0;
    a.net.within(() => {
      a.tunnel.put(entry, () => {
        calls++;
        const before = taker.sendOn();
        // The process is not on the processor for a while: these come, and nobody looks.
        if (calls <= 4) for (let n = 0; n < 3; n++) sender.send();
        return before;
      });
    });
    t.equal(calls, 5, `${name}: it is looked again as long as something has come`);
    t.equal(taker.found, 15);
    sender.send();
    t.same(await arrived(guest, 16), upTo(16), `${name}: in their order`);
    t.same(a.net.within(() => hold.read()), [], "nothing is left behind");
    t.same(a.net.within(() => a.tunnel.entries()), [entry.hold === undefined ? deliver(one) : entry]);
    await a.net.within(() => a.tunnel.set([]));
  }
});

t.test("from the moment when the last one was sent on, what comes goes its way, although the hold is not gone yet", async (t) => {
  const maps = a.net.within(() => new PinnedMaps(join(topology.all.folder, "a"), ["guests", "waiting"], 1000));
  const [guests, waiting] = [maps.get("guests"), maps.get("waiting")];
  const [sender, taker] = [new Sender(), new Taker()];
  sender.send();
  const key = addressKey(one.home);
  const before = guests.lookup(key);
  if (before === null) throw new Error("no entry");
  a.net.within(() => { a.tunnel.put(deliver(one)); });
  const after = guests.lookup(key);
  if (after === null) throw new Error("no entry");
  guests.update(key, before);
  let updates = 0;
  const slow = {
    update: (where: Uint8Array, value: Uint8Array): void => {
      guests.update(where, value);
      updates++;
      sender.send();
    },
  };
  const asIs = { lookup: (where: Uint8Array) => waiting.lookup(where), keys: () => [], delete: () => undefined, update: () => undefined };
  new Holds({ ...slow, lookup: (where) => guests.lookup(where) }, asIs)
    .open(key, decodeHostRecord(before), decodeHostRecord(after), () => taker.sendOn());
  t.equal(updates, 1);
  t.equal(taker.found, 1);
  t.same(a.net.within(() => hold.read()), [], "the second one has not waited");
  t.same(await arrived(guest, 2), [1, 2]);
  guests.update(key, after);
  maps.close({ keep: true });
});

t.test("somebody who sends faster than it is sent on does not keep a hold open for ever", async (t) => {
  const [sender, taker] = [new Sender(), new Taker()];
  let calls = 0;
  a.net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      const sent = taker.sendOn();
      sender.send();
      return sent;
    });
  });
  t.equal(calls, 16);
  taker.sendOn();
  t.equal(taker.found, 16, "the last one was left, and is there");
  sender.send();
  t.same(await arrived(guest, 17), upTo(17));
});

t.test("the same where the way leads on to another host", async (t) => {
  const [sender, taker] = [new Sender(), new Taker()];
  const passedOn: Buffer[] = [];
  sender.send();
  let calls = 0;
  a.net.within(() => {
    a.tunnel.put({ role: "forward", home: one.home, to: b.careOf, sender: { port: one.port, mac: one.mac } }, () => {
      calls++;
      for (const { frame, number } of hold.read()) {
        passedOn.push(frame);
        taker.taken = { directly: number, straggler: 0 };
      }
      const sent = taker.taken;
      if (calls === 1) {
        lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload: Buffer.from("number 0002") });
        Atomics.wait(NAP, 0, 0, 50);
      }
      return sent;
    });
  });
  t.equal(calls, 2);
  t.same(passedOn.map((frame) => /number (\d{4})/.exec(frame.toString("latin1"))?.[1]), ["0001", "0002"], "both have waited, and are passed on by hand");
  t.ok(passedOn.every((frame) => frame.subarray(0, 6).toString("hex") === one.mac.replaceAll(":", "")));
  lan.sendIp(lanRouter, { source: CORRESPONDENT, destination: one.home, payload: Buffer.from("number 0003"), protocol: TEST_PROTOCOL });
  t.same(await arrived(towardsB, 1), [3], "this one goes by itself");
});

t.test("stragglers and what comes directly end apart", (t) => {
  const taker = new Taker();
  const sender = new Sender();
  sender.send();
  let calls = 0;
  a.net.within(() => {
    a.tunnel.put({ ...deliver(one), stragglersFrom: [b.careOf], hold: { device: hold.name, from: "home-agents" } }, () => {
      calls++;
      return { directly: 0, straggler: 0 };
    });
  });
  t.equal(calls, 1, "nothing of the kind that ends waits");
  sender.send();
  t.same(a.net.within(() => hold.read()).map(({ number }) => number), [1, 2], "what comes directly still does");
  t.equal(taker.found, 0);
  t.end();
});

t.test("a VM on the same host overtakes nothing either: it takes the long way as long as something waits", async (t) => {
  await homeAgent.within(() => topology.home.set([bound(one, a), bound(two, a)]));
  await a.net.within(() => a.tunnel.set([deliver(two), all]));
  const [taker, before] = [new Taker(), counted()];
  let sent = 0;
  const send = (): void => {
    sent++;
    neighbour.sendIp(GATEWAY.mac, { source: two.home, destination: one.home, payload: Buffer.from(`number ${String(sent).padStart(4, "0")}`) });
    const end = performance.now() + 2000;
    while (counted() < before + sent && performance.now() < end) Atomics.wait(NAP, 0, 0, 1);
  };
  send();
  let calls = 0;
  a.net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      if (calls === 2) send();
      const done = taker.sendOn();
      if (calls === 1) send();
      return done;
    });
  });
  send();
  t.same(await arrived(guest, 4), upTo(4), "in their order");
  t.equal(taker.found, 3, "the last one goes straight to the port");
});

t.test("a failure in the middle leaves the hold closed, and the next attempt keeps the order too", async (t) => {
  const [sender, taker] = [new Sender(), new Taker()];
  sender.send();
  let calls = 0;
  t.throws(() => {
    a.net.within(() => {
      a.tunnel.put(deliver(one), () => {
        calls++;
        if (calls === 2) throw new Error("the hold cannot be read");
        const sent = taker.sendOn();
        sender.send();
        return sent;
      });
    });
  }, { message: "the hold cannot be read" });
  t.same(a.net.within(() => a.tunnel.entries()), [all], "as it was");
  sender.send();
  calls = 0;
  a.net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      const sent = taker.sendOn();
      if (calls === 1) sender.send();
      return sent;
    });
  });
  sender.send();
  t.equal(taker.found, 4);
  t.same(await arrived(guest, 5), upTo(5));
});

t.test("the numbers go on when another tunnel takes the place of the first, as its hold does", async (t) => {
  const [sender, taker] = [new Sender(), new Taker()];
  for (let n = 0; n < 2; n++) sender.send();
  taker.sendOn();
  const { net } = a;
  // As the agent does it when the home agent has another address: the old one is closed when the new one has everything.
  const maps = net.within(() => new PinnedMaps(join(topology.all.folder, "a"), ["guests", "waiting"], 1000));
  new Holds(maps.get("guests"), maps.get("waiting"));
  maps.close({ keep: true });
  await net.within(() => a.tunnel.set([all]));
  let calls = 0;
  net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      const sent = taker.sendOn();
      if (calls === 1) for (let n = 0; n < 2; n++) sender.send();
      return sent;
    });
  });
  sender.send();
  t.equal(calls, 2);
  t.same(await arrived(guest, 5), upTo(5));
});

t.test("in another hold they begin anew: what was in the first has gone with it", async (t) => {
  const [sender, second] = [new Sender(), a.net.within(() => new HoldDevice("co-hold2", 100))];
  for (let n = 0; n < 2; n++) sender.send();
  await a.net.within(() => a.tunnel.set([{ ...deliver(one), hold: { device: second.name, from: "all" } }]));
  sender.send();
  t.same(a.net.within(() => second.read()).map(({ number }) => number), [1]);
  a.net.within(() => { second.close(); });
});

t.test("what found no room in the hold is not waited for, and what comes meanwhile still is", async (t) => {
  const [sender, taker] = [new Sender(), new Taker()];
  // More than the hold takes, which is a few less than its length: the kernel frees places by the dozen.
  for (let n = 0; n < 105; n++) sender.send();
  let calls = 0;
  let room = 0;
  a.net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      const sent = taker.sendOn();
      if (calls === 1) room = taker.found;
      if (calls === 2) sender.send();
      return sent;
    });
  });
  t.equal(calls, 3);
  t.ok(room > 50 && room < 105, `${String(room)} found room`);
  for (let n = 0; n < 3; n++) sender.send();
  t.same(await arrived(guest, room + 4), [...upTo(room), 106, 107, 108, 109]);
  a.net.within(() => { a.tunnel.put(all); });
  for (let n = 0; n < 105; n++) sender.send();
  calls = 0;
  a.net.within(() => {
    a.tunnel.put(deliver(one), () => {
      calls++;
      return taker.sendOn();
    });
  });
  t.equal(calls, 2, "it is not looked again and again for what does not come");
});
