import { inPrefix, type Prefix } from "../model/address.js";
import { listAddresses } from "./netlink/addresses.js";
import { Netlink } from "./netlink/client.js";
import { ETHERNET, findLink } from "./netlink/links.js";
import type { Probe } from "./probe.js";
import { readSysctl, type Setting } from "./sysctl.js";

/** Can the home agent stand in for VMs on this interface (home.mode: proxy-arp)? */
export function probeHomeLan(device: string, prefixes: readonly Prefix[]): Probe {
  const name = "home LAN";
  const netlink = new Netlink();
  try {
    const link = findLink(netlink, device);
    if (link === null) return { name, ok: false, found: `there is no interface ${device}`, mend: "name the interface on the VMs' LAN as home.interface in the configuration" };
    if (link.hardware !== ETHERNET) return { name, ok: false, found: `${device} is not Ethernet`, mend: "name an Ethernet interface as home.interface" };
    // Who answers for whatever it has a route to elsewhere takes over half the world.
    const quiet = (each: string): Setting => ({ name: ["net", "ipv4", "conf", each, "proxy_arp"], value: "0" });
    const everywhere = readSysctl(quiet("all").name) === "0";
    // That of all interfaces is changed only where a row says so, and stays as it is where it is right.
    const settings: Setting[] = everywhere ? [quiet(device), quiet("all")] : [quiet(device)];
    if (!link.up) return { name, ok: false, found: `${device} is down`, mend: `ip link set ${device} up`, settings };
    const addresses = listAddresses(netlink, link.index);
    const here = addresses.filter(({ address }) => prefixes.some((each) => inPrefix(address, each)));
    if (here.length === 0) {
      const wanted = prefixes.map(({ address, length }) => `${address}/${String(length)}`).join(", ");
      return { name, ok: "warn", found: `${device} has no address in ${wanted}: neighbours there cannot be reached`, mend: `give it one that no VM has: ip address add ADDRESS/LENGTH dev ${device}`, settings };
    }
    const loud = ["all", device].filter((each) => readSysctl(quiet(each).name) === "1");
    if (loud.length > 0) {
      return {
        name, ok: "warn", found: `net.ipv4.conf.${loud.join(" and net.ipv4.conf.")}: proxy_arp is 1, so that ${device} answers for every address that this machine routes elsewhere, not only for VMs`,
        mend: "set it to 0 (careof doctor --fix); the home agent answers for VMs without it", settings: [quiet(device), quiet("all")],
      };
    }
    return { name, ok: true, found: `${device}, ${link.mac}, ${here.map(({ address, length }) => `${address}/${String(length)}`).join(", ")}`, mend: "", settings };
  } finally {
    netlink.close();
  }
}
