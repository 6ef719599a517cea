import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { release } from "node:os";
import { promisify } from "node:util";
import { toCareofError } from "../model/errors.js";
import { loadProgram } from "./bpf/loader.js";
import { errnoOf } from "./errno.js";
import { Netlink } from "./netlink/client.js";
import { deleteFilter, putFilter } from "./netlink/filters.js";
import { deleteLink, ETHERNET, findLink, requireLink } from "./netlink/links.js";
import { readSysctl } from "./sysctl.js";
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
}

const EPERM = 1;
const EACCES = 13;
const NFT_TIMEOUT_MS = 5_000;
const NFT_MAX_BYTES = 64 * 1024 * 1024;
const CLSACT_PREFERENCE = 1;

function fine(name: string, found: string): Probe {
  return { name, ok: true, found, mend: "" };
}

/** Can this process load the programs, make a TAP, and hang a program on it? All three are tried for real, on an interface that exists for a moment. */
export function probeKernel(): Probe[] {
  const needRoot = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN";
  let program: number;
  try {
    program = loadProgram("probe_decap", { get: () => { throw new Error("the probe uses no map"); } });
  } catch (thrown) {
    const denied = errnoOf(thrown) === EPERM || errnoOf(thrown) === EACCES;
    return [{ name: "bpf", ok: false, found: toCareofError(thrown).message, mend: denied ? needRoot : "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, Linux 5.10 or later" }];
  }
  try {
    return [fine("bpf", `Linux ${release()} takes BPF programs`), ...probeTap(program, needRoot)];
  } finally {
    close(program);
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

export function probeUplink(name: string): Probe {
  const netlink = new Netlink();
  try {
    const link = findLink(netlink, name);
    if (link === null) return { name: "uplink", ok: false, found: `there is no interface ${name}`, mend: "name the interface towards the other hosts as uplink in the configuration" };
    if (link.hardware !== ETHERNET) return { name: "uplink", ok: false, found: `${name} is not Ethernet`, mend: "name an Ethernet interface as uplink" };
    if (!link.up) return { name: "uplink", ok: false, found: `${name} is down`, mend: `ip link set ${name} up` };
    return fine("uplink", `${name}, ${link.mac}, MTU ${String(link.mtu)}`);
  } finally {
    netlink.close();
  }
}

/** careof switches forwarding on when it starts; what undoes that later is worth a warning. */
export function probeForwarding(): Probe {
  if (readSysctl(["net", "ipv4", "ip_forward"]) === "1") return fine("forwarding", "net.ipv4.ip_forward is 1");
  return { name: "forwarding", ok: "warn", found: "net.ipv4.ip_forward is 0", mend: "careof sets it to 1 when it starts; put net.ipv4.ip_forward=1 into /etc/sysctl.d so that it stays" };
}

/** Strict filtering fits the routes that careof makes: a VM's packets come in where its /32 route points. */
export function probeReversePath(uplink: string): Probe {
  const values = ["all", uplink].map((name) => readSysctl(["net", "ipv4", "conf", name, "rp_filter"]));
  const found = `rp_filter is ${values.map((value) => value ?? "unknown").join(" (all), ")} (${uplink})`;
  if (!values.includes("1") || values.includes("2")) return fine("rp_filter", found);
  const networks = "if correspondents are reached over more than one interface, set it to 2 (loose) on those";
  return { name: "rp_filter", ok: true, found: `${found}: strict`, mend: networks };
}

/** Forwarded packets pass netfilter's forward hook on the home agent; a chain that drops by policy there swallows the VMs' traffic. */
export async function probeNetfilter(): Promise<Probe> {
  const name = "netfilter";
  const legacy = legacyTables();
  if (legacy.includes("filter")) {
    return { name, ok: "warn", found: "iptables-legacy has a filter table, which cannot be read here", mend: "see that `iptables-legacy -S FORWARD` accepts traffic of the home addresses" };
  }
  let ruleset: string;
  try {
    ({ stdout: ruleset } = await promisify(execFile)("nft", ["-j", "list", "ruleset"], { timeout: NFT_TIMEOUT_MS, maxBuffer: NFT_MAX_BYTES }));
  } catch (thrown) {
    return { name, ok: "warn", found: `nft cannot be asked: ${toCareofError(thrown).message.split("\n")[0] ?? ""}`, mend: "install nftables for this check, or see that the forward hook accepts traffic of the home addresses" };
  }
  const dropping = forwardChainsThatDrop(ruleset);
  if (dropping.length === 0) return fine(name, "no chain at the forward hook drops by policy");
  return {
    name, ok: "warn", found: `${dropping.join(", ")} drops forwarded packets by policy`,
    mend: "accept traffic from and to the home prefixes there (for Docker: in the chain DOCKER-USER)",
  };
}

/** Names (`family table chain`) of base chains at the forward hook whose policy is drop, in the output of `nft -j list ruleset`. */
export function forwardChainsThatDrop(ruleset: string): string[] {
  const parsed: unknown = JSON.parse(ruleset);
  const items: unknown[] = isRecord(parsed) && Array.isArray(parsed["nftables"]) ? parsed["nftables"] : [];
  return items.flatMap((item) => {
    const chain = isRecord(item) ? item["chain"] : undefined;
    if (!isRecord(chain) || chain["hook"] !== "forward" || chain["policy"] !== "drop") return [];
    return [[chain["family"], chain["table"], chain["name"]].map(String).join(" ")];
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
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

/** All of them. */
export async function probeNetwork(uplink: string): Promise<Probe[]> {
  return [...probeKernel(), probeUplink(uplink), probeForwarding(), probeReversePath(uplink), await probeNetfilter(), probeClock()];
}
