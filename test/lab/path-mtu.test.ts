import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { ExternalLab } from "../../deploy/lab/external.js";
import { Lab } from "../../deploy/lab/lab.js";
import { PLAN } from "../../deploy/lab/plan.js";
import { ipv4, mac, type Ipv4, type Mac } from "../../model/address.js";
import { inNamespace as within } from "../../net/netns.js";
import { ICMP, type Packet } from "../net/lab/packets.js";
import { Wire } from "../net/lab/wire.js";

/**
 * Host A's path carries what its link does, host B's less, and no configuration says so. Full-size packets with DF go both ways before, while and after the VM moves; what is too big is
 * answered with the right size, the first packet too.
 */

const WIDE = 1480;
const NARROW = 1380;
const SMALL = 100;
const CORRESPONDENT = ipv4(PLAN.correspondent);
const GUEST = ipv4(PLAN.guest.address);
const PATHS = { "host-b": NARROW + 20 };
/** Far longer than it takes (a second or so). */
const BACK_MS = 30_000;
/** For what must be answered; a guest that shares its processors with a move, say, takes its time. */
const ANSWER_MS = 20_000;
/** A sender that nobody tells of the path's size stands still for ever. */
const STALL_MS = 5000;
/** For what may be lost and is asked again. */
const AGAIN_MS = 2000;
const ECHO = 8, ECHO_REPLY = 0, UNREACHABLE = 3;

const at = (name: string): { readonly within: <T>(work: () => T) => T } => ({ within: (work) => within(`/run/netns/${name}`, work) });
let sent = 0;

/** What comes back for an ICMP echo request of so many bytes with DF: the answer, the size that would fit, or nothing. */
async function echo(wire: Wire, router: Mac, source: Ipv4, destination: Ipv4, bytes: number, limitMs: number): Promise<"answered" | "silence" | number> {
  const id = ++sent;
  const payload = Buffer.alloc(bytes - 20);
  payload.writeUInt8(ECHO, 0);
  payload.writeUInt16BE(id, 4);
  let sum = 0;
  for (let i = 0; i < payload.length; i += 2) sum += payload.readUInt16BE(i);
  payload.writeUInt16BE(~((sum & 0xffff) + (sum >>> 16)) & 0xffff, 2);
  wire.forget();
  wire.sendIp(router, { source, destination, protocol: ICMP, payload });
  const ours = (packet: Packet): boolean => {
    if (packet.protocol !== ICMP) return false;
    if (packet.payload[0] === UNREACHABLE) return packet.payload.readUInt16BE(8 + 20 + 4) === id;
    // The answer has no DF and may come in pieces; the first has the number.
    return packet.payload[0] === ECHO_REPLY && packet.payload.readUInt16BE(4) === id;
  };
  const answer = await wire.packet(ours, limitMs);
  if (answer === null) return "silence";
  return answer.payload[0] === ECHO_REPLY ? "answered" : answer.payload.readUInt16BE(6);
}

async function macOf(namespace: string, device: string): Promise<Mac> {
  const [link] = JSON.parse(await must(inNamespace(namespace, ["ip", "-json", "link", "show", device]))) as { readonly address: string }[];
  return mac(link?.address ?? "");
}

const both = async (t: Test, ask: (bytes: number) => ReturnType<typeof echo>, largest: number, when: string): Promise<void> => {
  if (largest < WIDE) t.equal(await ask(WIDE), largest, `${when}: the first packet that is too big is answered`);
  t.equal(await ask(largest), "answered", `${when}: ${String(largest)} bytes pass`);
};

await t.test("a real guest, moved between paths of two sizes, with TCP in full-size segments both ways", { timeout: 400_000 }, async (t) => {
  const lab = await Lab.start({ pathMtus: PATHS });
  t.teardown(() => lab.close());
  await lab.startGuest("host-a");
  const traffic = await lab.traffic({ pps: 200, bulkMbit: 10 });
  const wire = new Wire(at(lab.namespace("c")), "home0");
  const router = await macOf(lab.namespace("h"), "home0");
  const down = (bytes: number): ReturnType<typeof echo> => echo(wire, router, CORRESPONDENT, GUEST, bytes, ANSWER_MS);

  await both(t, down, WIDE, "on A");
  for (const [to, after] of [["host-b", NARROW], ["host-a", WIDE]] as const) {
    const during: ReturnType<typeof echo>[] = [];
    await traffic.mark(`${to}.before`);
    await sleep(1000);
    const move = await lab.migrate(to, () => { if (during.length === 0) during.push(down(WIDE)); });
    t.match(move, { result: "completed" });
    t.same(await Promise.all(during), [NARROW], `while it moves to ${to}: as much as both paths carry`);
    await both(t, down, after, `after the move to ${to}`);
    await sleep(2000);
    await traffic.mark(`${to}.after`);
    await sleep(500);
    const window = await traffic.window(`${to}.before`, `${to}.after`);
    t.match(window, { receivedDown: window.sentDown, receivedUp: window.sentUp }, "no datagram is lost");
    t.ok(window.bulkDownBytes > 1_000_000 && window.bulkUpBytes > 1_000_000, "TCP flows", { found: window });
    t.ok((window.tcpStallDownMs ?? 99_999) < STALL_MS && (window.tcpStallUpMs ?? 99_999) < STALL_MS, "without a retransmission timer that has to find the size out", { found: window });
  }
  await traffic.idle();
  t.equal((await traffic.quit()).survived, true, "every session lives");
  t.strictSame(await lab.close(), []);
});

await t.test("a VM that something else moves hears it from its gateway, the first packet too", { timeout: 400_000 }, async (t) => {
  const lab = await ExternalLab.start({ pathMtus: PATHS });
  t.teardown(() => lab.close());
  const correspondent = new Wire(at(lab.lab.namespace("c")), "home0");
  const router = await macOf(lab.lab.namespace("h"), "home0");
  const cables = { "host-a": "cablea", "host-b": "cableb" } as const;
  const gateway = mac("02:ca:0f:00:00:01");
  const down = (bytes: number, limitMs = ANSWER_MS): ReturnType<typeof echo> => echo(correspondent, router, CORRESPONDENT, GUEST, bytes, limitMs);
  const up = (host: keyof typeof cables): ((bytes: number, limitMs?: number) => ReturnType<typeof echo>) => async (bytes, limitMs = ANSWER_MS) => {
    // One that saw its cable go down says so once more when it is up again.
    const cable = new Wire(at(lab.guest), cables[host]);
    try {
      return await echo(cable, gateway, GUEST, CORRESPONDENT, bytes, limitMs);
    } finally {
      cable.close();
    }
  };

  /** What is sent until it is answered so, and how long that took. */
  const again = async (ask: () => ReturnType<typeof echo>, wanted: Awaited<ReturnType<typeof echo>>): Promise<number | null> => {
    const begun = performance.now();
    while (performance.now() - begun < BACK_MS) if (await ask() === wanted) return performance.now() - begun;
    return null;
  };

  await both(t, up("host-a"), WIDE, "up from A");
  await both(t, down, WIDE, "down to A");
  for (const [to, largest] of [["host-b", NARROW], ["host-a", WIDE]] as const) {
    await lab.flip(to, { announce: "gratuitous-arp" });
    await lab.boundAt(to);
    // The host hears of it after the home agent has decided, and what the VM sends before is not passed on.
    t.ok(await again(() => up(to)(SMALL, AGAIN_MS), "answered") !== null, `${to} passes on what it sends`);
    await both(t, up(to), largest, `up from ${to}`);
    await both(t, down, largest, `down to ${to}`);
  }

  for (const [node, uplink, routes, name] of [
    ["h", "core0", ["10.0.0.0/8 via 192.0.2.2"], "home agent"], ["a", "uplink0", ["192.0.2.0/24 via 10.1.0.1", "10.2.0.0/24 via 10.1.0.1"], "host"],
  ] as const) {
    await must(inNamespace(lab.lab.namespace(node), ["ip", "-batch", "-"]), { input: [`link set ${uplink} down`, `link set ${uplink} up`, ...routes.map((route) => `route add ${route}`)].join("\n") });
    const [there, tooBig] = [await again(() => down(WIDE, AGAIN_MS), "answered"), await again(() => up("host-a")(WIDE + 2, AGAIN_MS), WIDE)];
    t.ok(there !== null && tooBig !== null, `the uplink of the ${name} was down and is up, and traffic flows again, the host's own answers too`);
    t.comment(`${name}: back after ${(there ?? 0).toFixed(0)} ms, the host's answer ${(tooBig ?? 0).toFixed(0)} ms later`);
  }
  t.same(await lab.close(), []);
});
