import { createSocket } from "node:dgram";
import { createServer } from "node:net";
import type { Endpoint } from "../../model/config.js";
import type { Probe } from "../../net/probe.js";

export interface PortUse {
  readonly what: string;
  readonly protocol: "tcp" | "udp";
  readonly at: Endpoint;
}

/** Binds each port for a moment. In use is only worth a warning: careof itself may be running. */
export async function probePorts(uses: readonly PortUse[]): Promise<Probe[]> {
  return await Promise.all(uses.map(async ({ what, protocol, at }): Promise<Probe> => {
    const name = `port ${protocol} ${String(at.port)}`;
    const trouble = await (protocol === "tcp" ? tryTcp(at) : tryUdp(at));
    if (trouble === null) return { name, ok: true, found: `free (${what})`, mend: "" };
    if (trouble === "EADDRINUSE") return { name, ok: "warn", found: `in use (${what})`, mend: `fine if careof is running; otherwise \`ss -lnp sport = :${String(at.port)}\` says who has it, and \`listen\` in the configuration takes another` };
    return { name, ok: false, found: `cannot be listened on at ${at.address}: ${trouble} (${what})`, mend: "name an address of this machine in the configuration" };
  }));
}

async function tryTcp(at: Endpoint): Promise<string | null> {
  const server = createServer();
  return await new Promise((resolve) => {
    server.once("error", (error: NodeJS.ErrnoException) => { resolve(error.code ?? error.message); });
    server.listen(at.port, at.address, () => { server.close(() => { resolve(null); }); });
  });
}

async function tryUdp(at: Endpoint): Promise<string | null> {
  const socket = createSocket(at.address.includes(":") ? "udp6" : "udp4");
  return await new Promise((resolve) => {
    socket.once("error", (error: NodeJS.ErrnoException) => { resolve(error.code ?? error.message); });
    socket.bind(at.port, at.address, () => { socket.close(() => { resolve(null); }); });
  });
}
