import { createSocket } from "node:dgram";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chooseAccelerator } from "../../agent/hypervisor/accelerator.js";
import { SystemClock } from "../../model/clock.js";
import { probeClock, probeForwarding, probeKernel, probeNetfilter, probeNetwork, type Probe } from "../../net/probe.js";
import { must } from "../lab/command.js";
import type { Machine } from "./checks.js";

const QEMU_ANSWER_MS = 5000;

/** The machine that this runs on. */
export class ThisMachine implements Machine {
  readonly nodeVersion = process.versions.node;
  readonly userId = process.getuid?.() ?? -1;

  async qemuVersion(binary: string): Promise<string> {
    return (await must([binary, "--version"], { limitMs: QEMU_ANSWER_MS })).split("\n")[0] ?? "";
  }

  async accelerator(binary: string, kernel: string | null): Promise<{ readonly accelerator: "kvm" | "tcg"; readonly reason: string }> {
    const directory = mkdtempSync(join(tmpdir(), "careof-doctor-"));
    try {
      return await chooseAccelerator({ binary, wish: "auto", kernel, directory, clock: new SystemClock({ keepAlive: true }) });
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }

  async bind(kind: "tcp" | "udp", address: string, port: number): Promise<string | null> {
    return kind === "tcp" ? bindTcp(address, port) : bindUdp(address, port);
  }

  async network(uplink: string | null): Promise<readonly Probe[]> {
    if (uplink !== null) return probeNetwork(uplink);
    return [...probeKernel(), probeForwarding(), await probeNetfilter(), probeClock()];
  }
}

async function bindTcp(address: string, port: number): Promise<string | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.on("error", (error) => { resolve(error.message); });
    server.listen(port, address, () => { server.close(() => { resolve(null); }); });
  });
}

async function bindUdp(address: string, port: number): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
    socket.on("error", (error) => {
      socket.close();
      resolve(error.message);
    });
    socket.bind({ port, address, exclusive: true }, () => { socket.close(() => { resolve(null); }); });
  });
}
