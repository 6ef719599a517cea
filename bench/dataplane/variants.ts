import { spawn } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { PLAN, type Node } from "../../deploy/lab/plan.js";
import { addressFromBytes, ipv4, isV4, mac, prefix, type Ipv4 } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { openHomeTunnel, openHostTunnel } from "../../net/data-plane.js";
import { inNamespace as within } from "../../net/netns.js";
import { LinuxVmPorts } from "../../net/vm-port-linux.js";
import { FIRST_HOME, GUEST_MAC, HOME_PREFIX, Network, PORT } from "./network.js";

/** One way from home agent to host, ready for traffic. */
export interface Path {
  readonly network: Network;
  close(): Promise<void>;
}

const HOME_AGENT = PLAN.homeAgent.core;
const CARE_OF = PLAN.hosts["host-a"].careOf;
/** What is left of 1500 bytes. */
const MTU = { plain: 1500, ipip: 1480, vxlan: 1450, wireguard: 1420 } as const;
export const INNER_MTU = MTU.ipip;
export const TABLE = 100;
const SOCKET_MS = 5000;

/** `count` addresses from `FIRST_HOME` on. */
export function homes(count: number): Ipv4[] {
  const first = ipv4(FIRST_HOME).split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  return Array.from({ length: count }, (_, index) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(first + index);
    const address = addressFromBytes(bytes);
    if (!isV4(address)) throw new CareofError("internal", "not four bytes");
    return address;
  });
}

/** Routers all the way: what there would be without mobility. */
export async function plain(): Promise<Path> {
  const network = await Network.make(MTU.plain);
  return ready(network, async () => {
    await network.plainPort();
    await network.ip("h", `route add ${HOME_PREFIX} via 192.0.2.2`);
    await network.ip("r", `route add ${HOME_PREFIX} via ${CARE_OF}`, `route add 203.0.113.0/24 via ${HOME_AGENT}`);
    await network.ip("a", "route add 203.0.113.0/24 via 10.1.0.1");
  });
}

/** Our driver as home agent and host agent use it, with so many bindings at both ends; the guest has the first of them. */
export async function ours(driver: "bpf" | "ipip", bindings: number): Promise<Path> {
  const network = await Network.make(MTU.ipip);
  const open: { close(options: { readonly keep: boolean }): Promise<void> }[] = [];
  return ready(network, async () => {
    const [h, a] = [network.path("h"), network.path("a")];
    const gateway = { address: ipv4(PLAN.gateway), mac: mac("02:ca:0f:00:00:01") };
    const first = ipv4(FIRST_HOME);
    const guest = mac(GUEST_MAC);
    const addresses = homes(bindings);
    const ports = within(a, () => new LinuxVmPorts({ uplink: "uplink0", gateway, table: TABLE, pathMtu: 0 }));
    open.push(ports);
    await within(a, () => ports.set([{ name: PORT, kind: "external", mac: guest, homeAddresses: [first], queueLength: 1000, mtu: MTU.ipip }]));
    const host = within(a, () => openHostTunnel(driver, { uplink: "uplink0", careOf: ipv4(CARE_OF), homeAgents: [ipv4(HOME_AGENT)], pathMtu: 0, runDir: network.directory("a"), maxEntries: bindings }).tunnel);
    open.push(host);
    await within(a, () => host.set(addresses.map((home) => ({ role: "deliver", home, port: PORT, mac: guest, stragglersFrom: [] }))));
    const home = within(h, () => openHomeTunnel(driver, { uplink: "core0", address: ipv4(HOME_AGENT), homePrefixes: [prefix(HOME_PREFIX)], runDir: network.directory("h"), maxEntries: bindings }).tunnel);
    open.push(home);
    await within(h, () => home.set(addresses.map((address) => ({ home: address, active: ipv4(CARE_OF), accept: [ipv4(CARE_OF)], mtu: MTU.ipip }))));
  }, async () => { for (const each of open) await each.close({ keep: false }); });
}

/** The kernel's ipip device with one fixed route at either end, and nothing that checks or counts. */
export async function device(): Promise<Path> {
  const network = await Network.make(MTU.ipip);
  return ready(network, async () => {
    const link = `link add ipip0 mtu ${String(MTU.ipip)} type ipip external`;
    const encap = (to: string): string => `encap ip id 0 dst ${to} ttl 64 dev ipip0`;
    await network.plainPort();
    await network.ip("h", link, "link set ipip0 up", `route add ${HOME_PREFIX} ${encap(CARE_OF)}`);
    await network.ip("a", link, "link set ipip0 up", `route add default ${encap(HOME_AGENT)} table ${String(TABLE)}`, `rule add iif ${PORT} lookup ${String(TABLE)}`);
  });
}

/** The kernel's VXLAN, one device with one fixed peer: its best case. */
export async function vxlan(): Promise<Path> {
  const network = await Network.make(MTU.vxlan);
  return ready(network, async () => {
    const device = (local: string, remote: string): string => `link add vx0 type vxlan id 42 local ${local} remote ${remote} dstport 4789`;
    await network.ip("h", device(HOME_AGENT, CARE_OF));
    await network.ip("a", device(CARE_OF, HOME_AGENT));
    await overlay(network, "vx0");
  });
}

/** wireguard-go: encryption in user space, which the other variants have not. @throws CareofError `timed-out` */
export async function wireguard(): Promise<Path> {
  const network = await Network.make(MTU.wireguard);
  return ready(network, async () => {
    const device = (node: Node): string => `wg${node}${network.run}`;
    for (const node of ["h", "a"] as const) {
      await startWireguard(network.name(node), device(node));
      writeFileSync(network.directory(node), await must(["wg", "genkey"]), { mode: 0o600 });
    }
    const publicKey = async (node: Node): Promise<string> => (await must(["wg", "pubkey"], { input: readFileSync(network.directory(node), "utf8") })).trim();
    for (const [node, peer, endpoint] of [["h", "a", CARE_OF], ["a", "h", HOME_AGENT]] as const) {
      await must(inNamespace(network.name(node), [
        "wg", "set", device(node), "private-key", network.directory(node), "listen-port", "51820", "peer", await publicKey(peer), "endpoint", `${endpoint}:51820`, "allowed-ips", "0.0.0.0/0",
      ]));
      await network.ip(node, `link set ${device(node)} name wg0 mtu ${String(MTU.wireguard)}`);
    }
    await overlay(network, "wg0");
  });
}

/** Routes over a device at both ends, the guest's by its port. */
async function overlay(network: Network, device: string): Promise<void> {
  const [h, a] = ["192.168.255.1", "192.168.255.2"];
  await network.plainPort();
  await network.ip("h", `addr add ${h}/30 dev ${device}`, `link set ${device} up`, `route add ${HOME_PREFIX} via ${a} dev ${device}`);
  await network.ip("a", `addr add ${a}/30 dev ${device}`, `link set ${device} up`, `route add default via ${h} dev ${device} table ${String(TABLE)}`, `rule add iif ${PORT} lookup ${String(TABLE)}`);
}

async function startWireguard(namespace: string, device: string): Promise<void> {
  const [program = "", ...words] = inNamespace(namespace, ["wireguard-go", "-f", device]);
  // Ended with its namespace (registry.ts). It asks to be told that the kernel's own would be faster; here the kernel may have none.
  const child = spawn(program, words, { stdio: "ignore", detached: true, env: { ...process.env, WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD: "1" } });
  child.unref();
  const until = Date.now() + SOCKET_MS;
  while (!existsSync(`/var/run/wireguard/${device}.sock`)) {
    if (Date.now() > until) throw new CareofError("timed-out", "wireguard-go does not come up");
    await sleep(20);
  }
}

/** Configures, and removes everything where that fails. */
async function ready(network: Network, configure: () => Promise<void>, before: () => Promise<void> = () => Promise.resolve()): Promise<Path> {
  const close = async (): Promise<void> => {
    try {
      await before();
    } finally {
      await network.close();
    }
  };
  try {
    await configure();
    return { network, close };
  } catch (thrown) {
    await close();
    throw thrown;
  }
}
