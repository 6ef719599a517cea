import { z } from "zod";
import { readAgentConfig } from "../../agent/config.js";
import { readHomeAgentConfig } from "../../home-agent/config.js";
import { endpoint, readConfig } from "../../model/config.js";
import type { PortUse } from "./ports-check.js";

/** What is worth looking at, for a part's configuration or for a machine that has none yet. */
export interface DoctorPlan {
  readonly role: "home agent" | "host agent" | "any part";
  readonly uplink: string | null;
  readonly ports: readonly PortUse[];
  readonly qemu: { readonly binary: string; readonly accel: "auto" | "kvm" | "tcg" } | null;
}

const ANY_PART: DoctorPlan = {
  role: "any part",
  uplink: null,
  ports: [
    { what: "agents of hosts", protocol: "tcp", at: endpoint("0.0.0.0:4434") },
    { what: "heartbeats", protocol: "udp", at: endpoint("0.0.0.0:4434") },
    { what: "API for operators", protocol: "tcp", at: endpoint("127.0.0.1:8434") },
  ],
  qemu: { binary: "qemu-system-x86_64", accel: "auto" },
};

/** A host agent's file names its home agent, a home agent's does not. @throws CareofError `config-…` */
export function planFor(file: string | undefined): DoctorPlan {
  if (file === undefined) return ANY_PART;
  const isAgent = "homeAgent" in readConfig(file, z.looseObject({}));
  if (isAgent) {
    const { uplink, heartbeats, qemu } = readAgentConfig(file);
    return { role: "host agent", uplink, qemu, ports: [{ what: "heartbeats of the guests", protocol: "udp", at: { address: "0.0.0.0", port: heartbeats.port } }] };
  }
  const { tunnel, listen } = readHomeAgentConfig(file);
  return {
    role: "home agent", uplink: tunnel.uplink, qemu: null,
    ports: [
      { what: "agents of hosts", protocol: "tcp", at: listen.agents },
      { what: "heartbeats", protocol: "udp", at: listen.heartbeats },
      { what: "API for operators", protocol: "tcp", at: listen.api },
    ],
  };
}
