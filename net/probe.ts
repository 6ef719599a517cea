import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { release } from "node:os";
import { promisify } from "node:util";
import type { Prefix } from "../model/address.js";
import { toCareofError } from "../model/errors.js";
import { loadProgram } from "./bpf/loader.js";
import type { DataPlane } from "./data-plane.js";
import { tryPrograms, WAYS } from "./driver-trial.js";
import { errnoOf } from "./errno.js";
import { droppingForwardChains } from "./forward-chains.js";
import { listAddresses } from "./netlink/addresses.js";
import { Netlink } from "./netlink/client.js";
import { deleteFilter, putFilter } from "./netlink/filters.js";
import { deleteLink, ETHERNET, findLink, listLinks, requireLink } from "./netlink/links.js";
import { probeHomeLan } from "./probe-home-lan.js";
import { probeDataPlanes } from "./probe-ipip.js";
import { readSysctl, sysctlText, type Setting } from "./sysctl.js";
import { clockIsSynchronised, close } from "./syscall.js";
import { createTap } from "./tap.js";

/** One thing that `careof doctor` looks at. */
export interface Probe {
  readonly name: string;
  /** `warn`: careof runs, but something may not work as expected. */
  readonly ok: true | false | "warn";
  readonly found: string;
  /** What to do about it; empty when there is nothing to do. */
  readonly mend: string;
  /** What `careof doctor --fix` sets for it, whether or not it is set already. */
  readonly settings?: readonly Setting[];
}

/** What of a home agent's configuration is looked at. */
export interface HomeSide {
  /** On the home LAN, null without one. */
  readonly interface: string | null;
  readonly prefixes: readonly Prefix[];
}

const EPERM = 1;
const EACCES = 13;
const NFT_TIMEOUT_MS = 5_000;
const NFT_MAX_BYTES = 64 * 1024 * 1024;
const CLSACT_PREFERENCE = 1;

function fine(name: string, found: string): Probe {
  return { name, ok: true, found, mend: "" };
}

/**
 * Can this process load programs, make a TAP, and hang a program on it? All three are tried for real, on an interface that exists for a moment. Programs of the data plane bpf that the kernel refuses are no failure where it takes
 * others: there may be ipip (`probeDataPlanes` says what is taken). `attempt` loads those of one end.
 */
export function probeKernel(attempt: typeof tryPrograms = tryPrograms): Probe[] {
  const needRoot = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN";
  let program: number;
  try {
    program = loadProgram("probe_decap", { get: () => { throw new Error("the probe uses no map"); } });
  } catch (thrown) {
    const denied = errnoOf(thrown) === EPERM || errnoOf(thrown) === EACCES;
    return [{ name: "bpf", ok: false, found: toCareofError(thrown).message, mend: denied ? needRoot : "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, Linux 5.10 or later" }];
  }
  try {
    return [probePrograms(attempt), ...probeTap(program, needRoot)];
  } finally {
    close(program);
  }
}

function probePrograms(attempt: typeof tryPrograms): Probe {
  try {
    for (const way of Object.values(WAYS.bpf)) attempt(way);
    return fine("bpf", `Linux ${release()} takes the BPF programs`);
  } catch (thrown) {
    return { name: "bpf", ok: "warn", found: `Linux ${release()} takes BPF programs, but not those of the data plane bpf: ${toCareofError(thrown).message}`, mend: "use Linux 5.10 or later, or the data plane ipip" };
  }
}

function probeTap(program: number, needRoot: string): Probe[] {
  const name = `coprobe${String(process.pid % 10_000_000)}`;
  const netlink = new Netlink();
  try {
    createTap(name);
  } catch (thrown) {
    netlink.close();
    const denied = errnoOf(thrown) === EPERM || errnoOf(thrown) === EACCES;
    return [{ name: "tun", ok: false, found: toCareofError(thrown).message, mend: denied ? needRoot : "load the tun module (modprobe tun) and see that /dev/net/tun exists" }];
  }
  try {
    const filter = { device: requireLink(netlink, name).index, direction: "ingress", preference: CLSACT_PREFERENCE } as const;
    putFilter(netlink, { ...filter, name: "careof_probe" }, program);
    deleteFilter(netlink, filter);
    return [fine("tun", "a TAP can be made"), fine("clsact", "a program can be hung on an interface")];
  } catch (thrown) {
    return [fine("tun", "a TAP can be made"), { name: "clsact", ok: false, found: toCareofError(thrown).message, mend: "use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF (modprobe sch_ingress cls_bpf)" }];
  } finally {
    const link = findLink(netlink, name);
    if (link !== null) deleteLink(netlink, link);
    netlink.close();
  }
}

/** `anyKind`: a home agent whose data plane may be ipip. */
export function probeUplink(name: string, anyKind = false): Probe {
  const netlink = new Netlink();
  try {
    const link = findLink(netlink, name);
    if (link === null) return { name: "uplink", ok: false, found: `there is no interface ${name}`, mend: "name the interface towards the other hosts as uplink in the configuration" };
    if (link.hardware !== ETHERNET && !anyKind) return { name: "uplink", ok: false, found: `${name} is not Ethernet`, mend: "name an Ethernet interface as uplink" };
    if (!link.up) return { name: "uplink", ok: false, found: `${name} is down`, mend: `ip link set ${name} up` };
    return fine("uplink", `${name}, ${link.mac}, MTU ${String(link.mtu)}`);
  } finally {
    netlink.close();
  }
}

/** careof switches forwarding on when it starts; what undoes that later, or for one interface, is worth a warning. */
export function probeForwarding(interfaces: readonly string[] = []): Probe {
  const name = "forwarding";
  const settings: Setting[] = [{ name: ["net", "ipv4", "ip_forward"], value: "1" }, ...interfaces.map((each) => ({ name: ["net", "ipv4", "conf", each, "forwarding"], value: "1" }))];
  const wrong = settings.filter((setting) => readSysctl(setting.name) === "0").map((setting) => sysctlText(setting.name));
  if (wrong.length === 0) return { ...fine(name, "net.ipv4.ip_forward is 1"), settings };
  const lasting = wrong.map((each) => `${each}=1`).join(", ");
  return { name, ok: "warn", found: `${wrong.join(", ")} is 0`, mend: `careof sets it to 1 when it starts; put ${lasting} into /etc/sysctl.d so that it stays (careof doctor --fix --persist)`, settings };
}

/** Without it the kernel interprets the programs that every packet passes. */
export function probeJit(): Probe[] {
  const name = "bpf jit";
  const setting: Setting = { name: ["net", "core", "bpf_jit_enable"], value: "1" };
  const value = readSysctl(setting.name);
  if (value === "1") return [{ ...fine(name, "net.core.bpf_jit_enable is 1"), settings: [setting] }];
  // 2 compiles too, and is somebody's wish; without the setting there is no compiler, or it is always on.
  if (value !== "0") return [];
  return [{ name, ok: "warn", found: "net.core.bpf_jit_enable is 0: the kernel interprets the BPF programs that every packet passes", mend: "set net.core.bpf_jit_enable=1 (careof doctor --fix)", settings: [setting] }];
}

/**
 * Strict filtering fits the routes that careof makes: a VM's packets come in where its /32 route points. It does not fit an interface of the home agent by which
 * correspondents come that are answered by another one: their packets are dropped without a word.
 */
export function probeReversePath(uplink: string, home: HomeSide | null = null): Probe {
  const name = "rp_filter";
  const reverse = (each: string): string | null => readSysctl(["net", "ipv4", "conf", each, "rp_filter"]);
  const strict = (each: string): boolean => [reverse("all"), reverse(each)].includes("1") && ![reverse("all"), reverse(each)].includes("2");
  const values = ["all", uplink].map(reverse);
  const found = `rp_filter is ${values.map((value) => value ?? "unknown").join(" (all), ")} (${uplink})`;
  const others = home === null ? [] : answeredElsewhere();
  const settings = others.filter((each) => strict(each) || reverse(each) === "2").map((each): Setting => ({ name: ["net", "ipv4", "conf", each, "rp_filter"], value: "2" }));
  const wrong = others.filter(strict);
  if (wrong.length > 0) {
    return {
      name, ok: "warn", found: `rp_filter is strict (1) on ${wrong.join(", ")}, where the default route does not leave: what comes there from beyond its own networks is dropped without a word`,
      mend: `set it to 2 (loose) on ${wrong.join(", ")} if correspondents or the home network's router are there (careof doctor --fix)`, settings,
    };
  }
  if (!strict(uplink)) return { ...fine(name, found), settings };
  return { name, ok: true, found: `${found}: strict`, mend: "if correspondents are reached over more than one interface, set it to 2 (loose) on those", settings };
}

/** Ethernet interfaces with an address, apart from those that the default route leaves by; none where there is no such route. On a home LAN the LAN's router hands over what comes from anywhere. */
function answeredElsewhere(): string[] {
  const ways = new Set(defaultDevices());
  if (ways.size === 0) return [];
  const netlink = new Netlink();
  try {
    return listLinks(netlink)
      .filter(({ name, hardware, up, index }) => up && hardware === ETHERNET && !ways.has(name) && listAddresses(netlink, index).length > 0)
      .map(({ name }) => name);
  } finally {
    netlink.close();
  }
}

function defaultDevices(): string[] {
  const rows = readFileSync("/proc/thread-self/net/route", "utf8").trim().split("\n").slice(1).map((row) => row.split("\t"));
  return rows.flatMap(([device = "", destination, , , , , , mask]) => (destination === "00000000" && mask === "00000000" ? [device] : []));
}

/**
 * What is inside the tunnels passes netfilter's forward hook on the home agent, both ways; a chain that drops by policy there swallows the VMs' traffic. `prefixes`:
 * the home prefixes of a home agent; none on a host, where neither data plane's packets pass it.
 */
export async function probeNetfilter(prefixes: readonly Prefix[] = []): Promise<Probe> {
  const name = "netfilter";
  const legacy = legacyTables();
  const traffic = prefixes.length === 0 ? "the home addresses" : prefixes.map(({ address, length }) => `${address}/${String(length)}`).join(", ");
  if (legacy.includes("filter")) {
    return { name, ok: "warn", found: "iptables-legacy has a filter table, which cannot be read here", mend: `see that \`iptables-legacy -S FORWARD\` accepts traffic of ${traffic}` };
  }
  let ruleset: string;
  try {
    ({ stdout: ruleset } = await promisify(execFile)("nft", ["-j", "list", "ruleset"], { timeout: NFT_TIMEOUT_MS, maxBuffer: NFT_MAX_BYTES }));
  } catch (thrown) {
    return { name, ok: "warn", found: `nft cannot be asked: ${toCareofError(thrown).message.split("\n")[0] ?? ""}`, mend: `install nftables for this check, or see that the forward hook accepts traffic of ${traffic}` };
  }
  const dropping = droppingForwardChains(ruleset);
  const deaf = dropping.filter((each) => !each.accepts(prefixes)).map((each) => each.name);
  if (dropping.length === 0) return fine(name, "no chain at the forward hook drops by policy");
  if (deaf.length === 0) return fine(name, `${dropping.map((each) => each.name).join(", ")} drops forwarded packets by policy and accepts the home prefixes`);
  return {
    name, ok: "warn", found: `${deaf.join(", ")} drops forwarded packets by policy`,
    mend: prefixes.length === 0
      ? "on a home agent accept traffic from and to the home prefixes there (for Docker: in the chain DOCKER-USER); on a host nothing of the VMs passes there"
      : `accept traffic from and to ${traffic} there (for Docker: in the chain DOCKER-USER)`,
  };
}

function legacyTables(): string[] {
  try {
    return readFileSync("/proc/net/ip_tables_names", "utf8").trim().split("\n");
  } catch {
    // Not there: this kernel has no iptables-legacy loaded.
    return [];
  }
}

/** Heartbeats carry the guest's time, which is compared with the home agent's. */
export function probeClock(): Probe {
  if (clockIsSynchronised()) return fine("clock", "the kernel's clock is synchronised");
  return { name: "clock", ok: "warn", found: "the kernel's clock is not synchronised", mend: "run chrony or systemd-timesyncd" };
}

/** All of them; `home` on a home agent. */
export async function probeNetwork(uplink: string, home: HomeSide | null = null, dataPlane: DataPlane = "auto"): Promise<Probe[]> {
  const lan = home?.interface ?? null;
  return [
    ...probeKernel(), ...probeJit(), probeUplink(uplink, home !== null && dataPlane !== "bpf"), ...probeDataPlanes(dataPlane, home === null ? "host" : "home", uplink), ...(home === null || lan === null ? [] : [probeHomeLan(lan, home.prefixes)]),
    probeForwarding(lan === null ? [uplink] : [uplink, lan]), probeReversePath(uplink, home), await probeNetfilter(home?.prefixes), probeClock(),
  ];
}
