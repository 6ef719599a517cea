import { randomBytes } from "node:crypto";
import { createSocket } from "node:dgram";
import { isIPv6 } from "node:net";
import { SystemClock } from "../model/clock.js";
import { createLogger } from "../model/log.js";
import { BOOT_ID_BYTES } from "../proto/heartbeat.js";
import { readHeartbeatConfig } from "./config.js";
import { HeartbeatService, HeartbeatSession } from "./heartbeat.js";

/**
 * Runs the heartbeat service until `signal` aborts.
 * @throws CareofError of `readHeartbeatConfig`; the network's errors are logged, each once until it changes
 */
export async function runHeartbeat(configFile: string, signal: AbortSignal): Promise<void> {
  const config = readHeartbeatConfig(configFile);
  if (signal.aborted) return;
  const log = createLogger("heartbeat", config.logLevel).child({ vm: config.vm });
  const socket = createSocket(isIPv6(config.to.address) ? "udp6" : "udp4");
  let trouble: string | null = null;
  const report = (error: Error | null): void => {
    const message = error?.message ?? null;
    if (message !== trouble && error !== null) log.warn({ err: error }, "cannot send");
    trouble = message;
  };
  const service = new HeartbeatService({
    session: new HeartbeatSession({ ...config, bootId: randomBytes(BOOT_ID_BYTES) }),
    interval: config.interval,
    clock: new SystemClock({ keepAlive: true }),
    send: (datagram) => { socket.send(datagram, config.to.port, config.to.address, report); },
    random: Math.random,
    onChange: (verdict) => { log.info({ reason: verdict }, "answered"); },
  });
  socket.on("message", (datagram) => { service.receive(datagram); });
  socket.on("error", report);
  await new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => {
      service.stop();
      socket.close(resolve);
    }, { once: true });
    log.info({ to: config.to, intervalMs: config.interval }, "sends heartbeats");
    service.start();
  });
}
