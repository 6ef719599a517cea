import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CareofError } from "../model/errors.js";

/** `["net", "ipv4", "conf", "eth0.5", "rp_filter"]`: a list, because interface names may hold dots. */
export type SysctlName = readonly string[];

/** A setting as careof wants it. */
export interface Setting {
  readonly name: SysctlName;
  readonly value: string;
}

/** As sysctl(8) and sysctl.d(5) take it: dots, or slashes where a part holds a dot itself. */
export function sysctlText(name: SysctlName): string {
  return name.join(name.some((part) => part.includes(".")) ? "/" : ".");
}

function path(name: SysctlName): string {
  return join("/proc/sys", ...name);
}

/** `null` where this kernel has no such setting. */
export function readSysctl(name: SysctlName): string | null {
  try {
    return readFileSync(path(name), "utf8").trim();
  } catch {
    return null;
  }
}

/**
 * Writes only what differs, since some settings (ip_forward) reset others when written.
 * @throws CareofError `kernel-refused`
 */
export function writeSysctl(name: SysctlName, value: string): void {
  if (readSysctl(name) === value) return;
  try {
    writeFileSync(path(name), value);
  } catch (cause) {
    throw new CareofError("kernel-refused", `cannot set ${name.join(".")} to ${value}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** As `writeSysctl`, but content where the kernel has no such setting (IPv6 switched off). */
export function writeSysctlIfThere(name: SysctlName, value: string): void {
  if (readSysctl(name) !== null) writeSysctl(name, value);
}

/** What every interface needs whose packets this machine routes: forwarding, and no redirects, which would lead around the tunnel. */
export function routeFor(interfaces: readonly string[]): void {
  writeSysctl(["net", "ipv4", "ip_forward"], "1");
  for (const name of ["all", ...interfaces]) {
    writeSysctl(["net", "ipv4", "conf", name, "send_redirects"], "0");
    writeSysctl(["net", "ipv4", "conf", name, "accept_redirects"], "0");
  }
}
