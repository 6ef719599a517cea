import { Netlink } from "../../../net/netlink/client.js";
import { findLink } from "../../../net/netlink/links.js";
import { LinuxVmPorts } from "../../../net/vm-port-linux.js";
import type { VmPort } from "../../../net/vm-port.js";
import { ipv4, mac } from "../../../model/address.js";
import { GATEWAY } from "./topology.js";

/*
 * In a process and namespace of its own, since what waits for a port to go is done in a later turn: `port-comes-back UPLINK TABLE` says as JSON what became of ports that were asked for while they went.
 */
const [uplink = "", table = ""] = process.argv.slice(2);
const netlink = new Netlink();
const ports = new LinuxVmPorts({ uplink, gateway: GATEWAY, table: Number(table), pathMtu: 0 });
const port = (name: string): VmPort => ({ name, kind: "tap", mac: mac("52:54:00:00:00:09"), homeAddresses: [ipv4("198.51.100.9")], queueLength: 300, mtu: 1380 });
const there = (name: string): boolean => findLink(netlink, name)?.up === true;

await ports.set([port("cotap1"), port("cotap2")]);
let turns = 0;
const count = setInterval(() => { turns++; }, 1);
const order: string[] = [];
const said = (what: string, name: string) => (): void => { order.push(`${what}: ${there(name) ? "there" : "not there"}`); };
await Promise.all([
  ports.drop("cotap1").then(said("one gone", "cotap1")),
  ports.put(port("cotap1")).then(said("back", "cotap1")),
  ports.drop("cotap2").then(said("other gone", "cotap2")),
  ports.drop("cotap2").then(said("again", "cotap2")),
]);
clearInterval(count);
const listed = ports.list().map(({ name }) => name);
const refused = await ports.put({ ...port("cotap1"), kind: "external", name: "nowhere0" }).then(() => "", String);
const last = ports.drop("cotap1");
await ports.close({ keep: false });
await last;
process.stdout.write(JSON.stringify({ others: turns > 0, order, listed, refused, left: ["cotap1", "cotap2"].filter(there) }));
netlink.close();
