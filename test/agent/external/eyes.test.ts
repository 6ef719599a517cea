import t from "tap";
import { LinuxEyes } from "../../../agent/external/eyes.js";
import { ipv4 } from "../../../model/address.js";
import { Netlink } from "../../../net/netlink/client.js";
import { requireLink } from "../../../net/netlink/links.js";
import { PacketSocket } from "../../../net/packet-socket.js";
import { Namespaces } from "../../net/lab/namespaces.js";

const SENT = 50;
const ROOM = 20;

t.test("what the hold has no room for is counted, each packet once", (t) => {
  const all = new Namespaces();
  t.teardown(() => { all.destroy(); });
  const host = all.make("hold");
  const eyes = host.within(() => new LinuxEyes({ careOf: ipv4("10.1.0.2"), queueLength: ROOM }));
  t.teardown(() => { eyes.close(); });
  const failed: unknown[] = [];
  host.within(() => { eyes.open({ link: () => undefined, held: () => undefined, failed: (error) => { failed.push(error); } }); });
  t.equal(eyes.overflowed(), 0);
  const [netlink, socket] = host.within(() => [new Netlink(), new PacketSocket()] as const);
  t.teardown(() => {
    netlink.close();
    socket.close();
  });
  const { index } = requireLink(netlink, eyes.hold);
  // As the data plane sends it: a mark in the source, an IPv4 packet to the VM.
  const frame = Buffer.concat([Buffer.from("02ca0000000002ca0000000108004500001400000000401100000a090909c6336407", "hex"), Buffer.alloc(26)]);
  for (let i = 0; i < SENT; i++) {
    try {
      socket.send(index, frame);
    } catch {
      // The kernel tells this sender that there was no room; whoever forwards is told nothing.
    }
  }
  const lost = eyes.overflowed();
  const held = eyes.takeHeld();
  t.match(held[0], { home: "198.51.100.7", came: "directly" });
  t.ok(held.length > 0 && lost > 0, "some found room, some did not", { found: { held: held.length, lost } });
  t.equal(held.length + lost, SENT);
  t.equal(eyes.overflowed(), 0, "it was told");
  t.same(failed, []);
  t.end();
});
