import { CareofError, toCareofError } from "../model/errors.js";
import { BpfHomeTunnel } from "./tunnel-bpf-home.js";
import { BpfHostTunnel } from "./tunnel-bpf-host.js";
import { IpipHomeTunnel } from "./tunnel-ipip-home.js";
import { IpipHostTunnel } from "./tunnel-ipip-host.js";
import type { HomeTunnel, HomeTunnelOptions, HostTunnel, HostTunnelOptions } from "./tunnel.js";

/** What a configuration may ask for. */
export const DATA_PLANES = ["auto", "bpf", "ipip"] as const;
export type DataPlane = (typeof DATA_PLANES)[number];

/** A tunnel and why it is this driver's: both belong into the log and into `doctor`. */
export interface Chosen<T> {
  readonly tunnel: T;
  readonly reason: string;
}

interface Driver<Options, T> {
  readonly bpf: (options: Options) => T;
  readonly ipip: (options: Options) => T;
}

const homes: Driver<HomeTunnelOptions, HomeTunnel> = { bpf: (options) => new BpfHomeTunnel(options), ipip: (options) => new IpipHomeTunnel(options) };
const hosts: Driver<HostTunnelOptions, HostTunnel> = { bpf: (options) => new BpfHostTunnel(options), ipip: (options) => new IpipHostTunnel(options) };

/** What another driver may be able to do. */
const ANOTHER_MAY = new Set(["kernel-refused", "unsupported"]);

/** @throws CareofError `both-ends`, `unsupported` (this kernel cannot do what is wanted, or neither), `no-link`, `not-ours`, `kernel-refused` */
export function openHomeTunnel(wanted: DataPlane, options: HomeTunnelOptions): Chosen<HomeTunnel> {
  return choose(wanted, homes, options);
}

/** @throws as `openHomeTunnel` */
export function openHostTunnel(wanted: DataPlane, options: HostTunnelOptions): Chosen<HostTunnel> {
  return choose(wanted, hosts, options);
}

function choose<Options, T>(wanted: DataPlane, drivers: Driver<Options, T>, options: Options): Chosen<T> {
  const { made, reason } = chooseDriver(wanted, { bpf: () => drivers.bpf(options), ipip: () => drivers.ipip(options) });
  return { tunnel: made, reason };
}

/**
 * Which driver it is: what the agents open and what `doctor` tries is decided here alone. `auto` prefers bpf, which costs less per packet, and takes ipip where the kernel (before Linux 5.10) or the uplink (not Ethernet) is not
 * for it. @throws CareofError `unsupported` when neither works, or what the attempt at the only one that may be taken throws
 */
export function chooseDriver<T>(wanted: DataPlane, attempts: { readonly bpf: () => T; readonly ipip: () => T }): { readonly driver: "bpf" | "ipip"; readonly made: T; readonly reason: string } {
  if (wanted !== "auto") return { driver: wanted, made: attempts[wanted](), reason: "configured" };
  let bpf: CareofError;
  try {
    return { driver: "bpf", made: attempts.bpf(), reason: "this kernel takes the BPF programs" };
  } catch (thrown) {
    bpf = toCareofError(thrown);
    if (!ANOTHER_MAY.has(bpf.code)) throw bpf;
  }
  try {
    return { driver: "ipip", made: attempts.ipip(), reason: `bpf does not work here: ${bpf.message}` };
  } catch (thrown) {
    const ipip = toCareofError(thrown);
    throw new CareofError("unsupported", `no data plane works here: bpf: ${bpf.message}; ipip: ${ipip.message}`, { cause: ipip });
  }
}
