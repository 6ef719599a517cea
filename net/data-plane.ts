import { CareofError, toCareofError } from "../model/errors.js";
import { BpfHomeTunnel } from "./tunnel-bpf-home.js";
import { BpfHostTunnel } from "./tunnel-bpf-host.js";
import type { HomeTunnel, HomeTunnelOptions, HostTunnel, HostTunnelOptions } from "./tunnel.js";

/** What a configuration may ask for. `ipip` is the kernel's own device; its driver takes its place in `drivers` below. */
export const DATA_PLANES = ["auto", "bpf", "ipip"] as const;
export type DataPlane = (typeof DATA_PLANES)[number];

/** A tunnel and why it is this driver's: both belong into the log and into `doctor`. */
export interface Chosen<T> {
  readonly tunnel: T;
  readonly reason: string;
}

/** In the order in which `auto` tries them. */
const drivers = {
  bpf: {
    home: (options: HomeTunnelOptions): HomeTunnel => new BpfHomeTunnel(options),
    host: (options: HostTunnelOptions): HostTunnel => new BpfHostTunnel(options),
  },
} as const;

/** @throws CareofError `unsupported` (no driver of that name, or the kernel takes none), `no-link` */
export function openHomeTunnel(wanted: DataPlane, options: HomeTunnelOptions): Chosen<HomeTunnel> {
  return choose(wanted, (driver) => driver.home(options));
}

/** @throws as `openHomeTunnel` */
export function openHostTunnel(wanted: DataPlane, options: HostTunnelOptions): Chosen<HostTunnel> {
  return choose(wanted, (driver) => driver.host(options));
}

type Driver = (typeof drivers)[keyof typeof drivers];

function choose<T>(wanted: DataPlane, open: (driver: Driver) => T): Chosen<T> {
  if (wanted === "ipip") throw new CareofError("unsupported", "this version has no ipip data plane; say bpf or auto");
  if (wanted === "bpf") return { tunnel: open(drivers.bpf), reason: "configured" };
  try {
    return { tunnel: open(drivers.bpf), reason: "this kernel takes the BPF programs" };
  } catch (thrown) {
    const failure = toCareofError(thrown);
    if (failure.code !== "kernel-refused") throw failure;
    throw new CareofError("unsupported", `no data plane works here: bpf: ${failure.message}`, { cause: failure });
  }
}
