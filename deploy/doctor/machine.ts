import { createSocket } from "node:dgram";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { chooseAccelerator } from "../../agent/hypervisor/accelerator.js";
import { SystemClock } from "../../model/clock.js";
import type { DataPlane } from "../../net/data-plane.js";
import { probeClock, probeForwarding, probeJit, probeKernel, probeNetfilter, probeNetwork, type HomeSide, type Probe } from "../../net/probe.js";
import { probeAuto, probeIpip } from "../../net/probe-ipip.js";
import { readSysctl, writeSysctl } from "../../net/sysctl.js";
import { must } from "../lab/command.js";
import type { Machine } from "./checks.js";
import { fileRefused, type Settings } from "./fix.js";

const QEMU_ANSWER_MS = 60_000;

const LASTING = "/etc/sysctl.d/60-careof.conf";

/** The machine that this runs on. */
export class ThisMachine implements Machine {
  readonly nodeVersion = process.versions.node;
  readonly userId = process.getuid?.() ?? -1;
  readonly settings: Settings;

  /** `lasting`: the file for settings that stay. */
  constructor(lasting = LASTING) {
    this.settings = settingsOf(lasting);
  }

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

  async network(uplink: string | null, home: HomeSide | null, dataPlane: DataPlane): Promise<readonly Probe[]> {
    if (uplink !== null) return probeNetwork(uplink, home, dataPlane);
    return [...probeKernel(), ...probeJit(), ...probeAuto(), probeForwarding(), await probeNetfilter(), probeClock(), probeIpip()];
  }
}

function settingsOf(file: string): Settings {
  const guarded = <T>(work: () => T): T => {
    try {
      return work();
    } catch (thrown) {
      throw fileRefused(file, thrown);
    }
  };
  return {
    file,
    read: readSysctl,
    write: writeSysctl,
    readFile: () => guarded(() => (existsSync(file) ? readFileSync(file, "utf8") : "")),
    writeFile: (text) => {
      guarded(() => {
        mkdirSync(dirname(file), { recursive: true });
        writeFileSync(`${file}.new`, text, { mode: 0o644 });
        renameSync(`${file}.new`, file);
      });
    },
  };
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
