import { randomBytes } from "node:crypto";

/**
 * The lab's addresses (RFC 5737 and RFC 1918), the same in every run: each run has namespaces of its own.
 *
 *   correspondent ── home network ── home agent ── core ── router ─┬─ subnet A ── host A
 *                                                                  └─ subnet B ── host B
 *
 * The router knows nothing of the home prefix: a guest's packet gets through in a tunnel or not at all.
 */
export const PLAN = {
  homePrefix: "198.51.100.0/24",
  guest: { name: "web1", address: "198.51.100.7", mac: "52:54:00:ca:0f:07", keyId: 1 },
  gateway: "169.254.1.1",
  correspondent: "203.0.113.10",
  homeAgent: { home: "203.0.113.1", core: "192.0.2.1" },
  hosts: {
    "host-a": { node: "a", careOf: "10.1.0.2" },
    "host-b": { node: "b", careOf: "10.2.0.2" },
  },
  ports: { agents: 4434, heartbeats: 4434, api: 8434 },
} as const;

export type HostName = keyof typeof PLAN.hosts;
export const HOSTS: readonly HostName[] = ["host-a", "host-b"];

/** correspondent, home agent, router, host A, host B. */
export type Node = "c" | "h" | "r" | "a" | "b";


interface End {
  readonly node: Node;
  readonly name: string;
  readonly address: string;
}

export interface LabPlan {
  readonly run: string;
  readonly namespaces: Readonly<Record<Node, string>>;
  /** The third is the length of a cable that has one; the way there is from the first end to the second. */
  readonly links: readonly (readonly [End, End, WireDelay?])[];
  /** By node: destination and next hop. */
  readonly routes: readonly { readonly node: Node; readonly to: string; readonly via: string }[];
  readonly forwarding: readonly Node[];
  /** The router lets nothing larger through between the home agent and this host's subnet, in bytes: what the links on either side of it carry does not show it. */
  readonly pathMtus: PathMtus;
}

export type PathMtus = Partial<Readonly<Record<HostName, number>>>;

/** Six characters that name a run; part of each namespace's name. */
export function newRunId(): string {
  return randomBytes(3).toString("hex");
}

export function namespacesOf(run: string): Readonly<Record<Node, string>> {
  return { c: `co-${run}-c`, h: `co-${run}-h`, r: `co-${run}-r`, a: `co-${run}-a`, b: `co-${run}-b` };
}

/** The namespace that is itself a VM, where something other than careof moves it (external.ts). */
export function guestNamespaceOf(run: string): string {
  return `co-${run}-v`;
}

/** One-way delays of a cable in microseconds. */
export interface WireDelay {
  readonly thereUs: number;
  readonly backUs: number;
}

/** What the lab's network shall be; `topology.ts` makes it so. The cables of `wires` lead from the router to the host. */
export function labPlan(run: string, wires: Partial<Readonly<Record<HostName, WireDelay>>> = {}, pathMtus: PathMtus = {}): LabPlan {
  const cable = (host: HostName): [WireDelay?] => (wires[host] === undefined ? [] : [wires[host]]);
  return {
    run,
    namespaces: namespacesOf(run),
    links: [
      [{ node: "c", name: "home0", address: "203.0.113.10/24" }, { node: "h", name: "home0", address: "203.0.113.1/24" }],
      [{ node: "h", name: "core0", address: "192.0.2.1/24" }, { node: "r", name: "core0", address: "192.0.2.2/24" }],
      [{ node: "r", name: "suba0", address: "10.1.0.1/24" }, { node: "a", name: "uplink0", address: "10.1.0.2/24" }, ...cable("host-a")],
      [{ node: "r", name: "subb0", address: "10.2.0.1/24" }, { node: "b", name: "uplink0", address: "10.2.0.2/24" }, ...cable("host-b")],
    ],
    routes: [
      { node: "c", to: "default", via: "203.0.113.1" },
      { node: "h", to: "10.0.0.0/8", via: "192.0.2.2" },
      { node: "a", to: "192.0.2.0/24", via: "10.1.0.1" },
      { node: "a", to: "10.2.0.0/24", via: "10.1.0.1" },
      { node: "b", to: "192.0.2.0/24", via: "10.2.0.1" },
      { node: "b", to: "10.1.0.0/24", via: "10.2.0.1" },
    ],
    forwarding: ["h", "r", "a", "b"],
    pathMtus,
  };
}

