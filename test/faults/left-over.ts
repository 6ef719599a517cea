import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { command, inNamespace, must } from "../../deploy/lab/command.js";
import type { Lab } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { REPOSITORY } from "../../deploy/lab/program.js";

const GUEST = PLAN.guest.address;
/** The defaults of both parts' configuration: a pinned map is opened by its size. */
const MAX_ENTRIES = { host: 4096, home: 65_536 } as const;
const links = z.array(z.looseObject({ ifname: z.string() }));
const hostEntries = z.array(z.looseObject({ home: z.string(), role: z.enum(["deliver", "forward"]) }));
const homeEntries = z.array(z.looseObject({ home: z.string(), active: z.string().nullable(), accept: z.array(z.string()) }));

/** QEMU processes in a host's namespace. */
export function qemuOf(lab: Lab, host: HostName): number[] {
  const inode = String(statSync(`/run/netns/${lab.namespace(PLAN.hosts[host].node)}`).ino);
  return readdirSync("/proc").filter((pid) => /^[0-9]+$/.test(pid)).map(Number).filter((pid) => {
    try {
      return readlinkSync(`/proc/${String(pid)}/ns/net`) === `net:[${inode}]` && readFileSync(`/proc/${String(pid)}/comm`, "utf8").startsWith("qemu-system");
    } catch {
      return false; // ended meanwhile
    }
  });
}

/** What is on the hosts and in the home agent's tunnel that should not be, and what is missing, when the guest belongs to `owner` (`null`: nobody). */
export async function leftOver(lab: Lab, owner: HostName | null): Promise<string[]> {
  const found = await Promise.all([...HOSTS.map((host) => ofHost(lab, host, host === owner)), ofHome(lab, owner)]);
  return found.flat();
}

async function ofHost(lab: Lab, host: HostName, owns: boolean): Promise<string[]> {
  const namespace = lab.namespace(PLAN.hosts[host].node);
  const at = (...parts: string[]): string => join(lab.directory, host, ...parts);
  const wanted = owns ? 1 : 0;
  const wrong: string[] = [];
  const count = (what: string, names: readonly string[], right: number): void => {
    if (names.length !== right) wrong.push(`${host}: ${String(names.length)} ${what} instead of ${String(right)}${names.length === 0 ? "" : ` (${names.join(", ")})`}`);
  };
  const [linkText, routes, listeners, entries] = await Promise.all([
    must(inNamespace(namespace, ["ip", "-j", "link"])),
    must(inNamespace(namespace, ["ip", "route", "show", "table", "all"])),
    must(inNamespace(namespace, ["ss", "-Hltn"])),
    tunnelEntries(lab, host),
  ]);
  count("QEMU processes", qemuOf(lab, host).map((pid) => String(pid)), wanted);
  count("TAPs", links.parse(JSON.parse(linkText)).map((link) => link.ifname).filter((name) => /^co[-_]/.test(name)), wanted);
  const guestRoutes = routes.split("\n").filter((line) => line.startsWith(`${GUEST} `) || line.startsWith(`local ${GUEST} `));
  if (owns !== guestRoutes.length > 0) wrong.push(`${host}: routes to the guest: ${guestRoutes.length === 0 ? "none" : guestRoutes.join("; ")}`);
  count("listening TCP sockets", listeners.split("\n").filter((line) => line.trim() !== ""), 0);
  const ours = hostEntries.parse(entries).filter((entry) => entry.home === GUEST);
  count("tunnel entries", ours.map((entry) => entry.role), wanted);
  if (owns && ours.some((entry) => entry.role !== "deliver")) wrong.push(`${host}: forwards its own guest's packets`);
  count("relay sockets", files(at("run")).filter((name) => /^(in|out)-.*[.]sock$/.test(name)), 0);
  count("QMP sockets", files(at("run", "guests")).filter((name) => name.endsWith(".qmp")), wanted);
  count("open migrations", files(at("state", "migrations")), 0);
  return wrong;
}

async function ofHome(lab: Lab, owner: HostName | null): Promise<string[]> {
  const entries = homeEntries.parse(await tunnelEntries(lab, "home")).filter((entry) => entry.home === GUEST);
  const careOf = owner === null ? null : PLAN.hosts[owner].careOf;
  if (careOf === null) return entries.length === 0 ? [] : [`home agent: an entry for a guest that is nobody's: ${JSON.stringify(entries)}`];
  const [entry] = entries;
  if (entry?.active !== careOf) return [`home agent: the tunnel ends at ${entry?.active ?? "nothing"} instead of ${careOf}`];
  return entry.accept.length === 1 && entry.accept[0] === careOf ? [] : [`home agent: ${entry.accept.join(", ")} may send for the guest`];
}

async function tunnelEntries(lab: Lab, where: HostName | "home"): Promise<unknown> {
  const side = where === "home" ? "home" : "host";
  const options = where === "home"
    ? { side, uplink: "core0", address: PLAN.homeAgent.core, homeAgent: PLAN.homeAgent.core, runDir: join(lab.directory, "home", "run"), maxEntries: MAX_ENTRIES.home }
    : { side, uplink: "uplink0", address: PLAN.hosts[where].careOf, homeAgent: PLAN.homeAgent.core, runDir: join(lab.directory, where, "run"), maxEntries: MAX_ENTRIES.host };
  const namespace = lab.namespace(where === "home" ? "h" : PLAN.hosts[where].node);
  const said = await command(inNamespace(namespace, [process.execPath, join(REPOSITORY, "dist", "test", "faults", "inspect.js"), JSON.stringify(options)]));
  if (said.code !== 0) throw new Error(`the tunnel of ${where} cannot be looked at: ${said.stderr.slice(-500)}`);
  return JSON.parse(said.stdout);
}

function files(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}
