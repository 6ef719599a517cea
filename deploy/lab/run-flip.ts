import { Buffer } from "node:buffer";
import { createInterface } from "node:readline";
import { ipv4, mac, macBytes } from "../../model/address.js";
import { SystemClock } from "../../model/clock.js";
import { Netlink } from "../../net/netlink/client.js";
import { changeLink, requireLink, type Link } from "../../net/netlink/links.js";
import { putNeighbour } from "../../net/netlink/neighbours.js";
import { MAIN_TABLE, putRoute } from "../../net/netlink/routes.js";
import { PacketSocket } from "../../net/packet-socket.js";

/*
 * Plugs a VM that is a network namespace (external.ts) from one cable into another, in much less than a millisecond where the kernel is quick.
 *   run-flip GATEWAY GATEWAY-MAC      reads lines `pull|plug|ready|switch|linger FROM TO quiet|rarp|gratuitous-arp ADDRESS`; FROM may be `-`
 * `pull` takes the old cable out before the new one is in, `plug` after it: then the VM can always send. `ready` only puts the new one in, as a hypervisor makes
 * the new port ahead of a migration, and `switch` goes over to it and takes the old one out. `linger` leaves the old one in: somebody else removes it later. Answers each line by {"pulledAt", "pluggedAt", "cutMs"};
 * the last is the time from the beginning of a `pull` until the new cable is in, in which the VM has none.
 */

const [, , gatewayText = "", gatewayMac = ""] = process.argv;
const gateway = ipv4(gatewayText);
const netlink = new Netlink();
const frames = new PacketSocket();
const clock = new SystemClock();
/** What `ip route` calls "boot". */
const PROTOCOL = 3;

function ready(link: Link): number {
  changeLink(netlink, { ...link, up: false }, { up: true });
  return clock.monotonic();
}

function plug(link: Link): number {
  if (!link.up) ready(link);
  putNeighbour(netlink, { device: link.index, address: gateway, mac: mac(gatewayMac) });
  putRoute(netlink, { destination: { address: ipv4("0.0.0.0"), length: 0 }, table: MAIN_TABLE, protocol: PROTOCOL, device: link.index, via: gateway, mtu: 0, metric: 0 });
  return clock.monotonic();
}

function pull(link: Link | null): number {
  if (link !== null) changeLink(netlink, { ...link, up: true }, { up: false });
  return clock.monotonic();
}

/** RFC 903 §2 as QEMU sends it when a guest has arrived, or RFC 5227 §3. */
function announce(link: Link, how: "rarp" | "gratuitous-arp", address: string): void {
  const own = Buffer.from(macBytes(mac(link.mac)));
  const ip = Buffer.from(address.split(".").map(Number));
  const header = how === "rarp" ? "80350001080006040003" : "08060001080006040001";
  const body = how === "rarp" ? [own, Buffer.alloc(4), own, Buffer.alloc(4)] : [own, ip, Buffer.alloc(6), ip];
  frames.send(link.index, Buffer.concat([Buffer.alloc(6, 0xff), own, Buffer.from(header, "hex"), ...body, Buffer.alloc(18)]));
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const [order = "", from = "", to = "", how = "", address = ""] = line.split(" ");
  const old = from === "-" ? null : requireLink(netlink, from);
  const next = requireLink(netlink, to);
  if (order === "ready") {
    const now = ready(next);
    process.stdout.write(`${JSON.stringify({ pulledAt: now, pluggedAt: now, cutMs: 0 })}\n`);
    return;
  }
  const began = clock.monotonic();
  const first = order === "pull" ? pull(old) : plug(next);
  if (order === "switch" && (how === "rarp" || how === "gratuitous-arp")) announce(next, how, address);
  const second = order === "pull" ? plug(next) : order === "linger" ? first : pull(old);
  if (order !== "switch" && (how === "rarp" || how === "gratuitous-arp")) announce(next, how, address);
  const [pulledAt, pluggedAt] = order === "pull" ? [first, second] : [second, first];
  process.stdout.write(`${JSON.stringify({ pulledAt, pluggedAt, cutMs: order === "pull" ? pluggedAt - began : 0 })}\n`);
}).on("close", () => { process.exit(); });
process.stdout.write('{"ready":true}\n');
