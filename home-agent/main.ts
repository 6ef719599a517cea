import { mkdirSync } from "node:fs";
import { toCareofError } from "../model/errors.js";
import { SystemClock } from "../model/clock.js";
import { createLogger } from "../model/log.js";
import { careofVersion } from "../model/version.js";
import { openHomeTunnel } from "../net/data-plane.js";
import { readHomeAgentConfig } from "./config.js";
import { LinuxPathWire } from "../net/path-mtu.js";
import { HomeAgent, openStore } from "./home-agent.js";

/**
 * Runs the home agent of a configuration file until `signal` says stop; then everything is closed and the kernel's state stays, so that traffic
 * flows on. SIGHUP takes a changed file over.
 * @throws CareofError as `readHomeAgentConfig`, `openHomeTunnel`, `Journal.open`, and `cannot-listen`
 */
export async function runHomeAgent(configFile: string, signal: AbortSignal): Promise<void> {
  const config = readHomeAgentConfig(configFile);
  const log = createLogger("home-agent", config.log.level);
  mkdirSync(config.runDir, { recursive: true, mode: 0o700 });
  const store = await openStore(config.stateDir, log);
  const { uplink, address, dataPlane, maxEntries } = config.tunnel;
  const { tunnel, reason } = openHomeTunnel(dataPlane, { uplink, address, homePrefixes: config.home.prefixes, runDir: config.runDir, maxEntries });
  log.info({ dataPlane: tunnel.driver, reason, uplink, address }, `data plane: ${tunnel.driver} (${reason})`);
  const homeAgent = await HomeAgent.open({ config, readConfig: () => readHomeAgentConfig(configFile), clock: new SystemClock(), log, tunnel, pathWire: new LinuxPathWire(), store, version: careofVersion() });
  const reload = (): void => {
    homeAgent.reload().catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      log.error({ code: error.code }, `the changed configuration was not taken over: ${error.message}`);
    });
  };
  process.on("SIGHUP", reload);
  try {
    await homeAgent.start();
    await aborted(signal);
    log.info("stopping; the tunnels stay");
  } finally {
    process.off("SIGHUP", reload);
    await homeAgent.close();
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => { resolve(); }, { once: true });
  });
}
