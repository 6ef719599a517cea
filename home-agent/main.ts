import { mkdirSync } from "node:fs";
import { toCareofError } from "../model/errors.js";
import { SystemClock } from "../model/clock.js";
import { createLogger, type Logger } from "../model/log.js";
import { careofVersion } from "../model/version.js";
import { openHomeTunnel } from "../net/data-plane.js";
import { EndClaim } from "../net/end-claim.js";
import { LinuxHomeLan, stopAnswering } from "../net/home-lan-linux.js";
import type { HomeLan } from "../net/home-lan.js";
import { LinuxPathWire } from "../net/path-mtu.js";
import { UplinkMender } from "../net/uplink-mender.js";
import { LinuxUplinkNews } from "../net/uplink-news.js";
import { readHomeAgentConfig, type HomeAgentConfig } from "./config.js";
import { HomeAgent, openStore } from "./home-agent.js";

/**
 * Runs the home agent of a configuration file until `signal` says stop; then everything is closed and the kernel's state stays, so that traffic
 * flows on. SIGHUP takes a changed file over.
 * @throws CareofError as `readHomeAgentConfig`, `EndClaim`, `openHomeTunnel`, `Journal.open`, and `cannot-listen`
 */
export async function runHomeAgent(configFile: string, signal: AbortSignal): Promise<void> {
  const config = readHomeAgentConfig(configFile);
  // Before anything is touched, and until everything is closed.
  const claim = new EndClaim("home");
  try {
    await runOnClaimed(configFile, config, signal);
  } finally {
    claim.close();
  }
}

async function runOnClaimed(configFile: string, config: HomeAgentConfig, signal: AbortSignal): Promise<void> {
  const log = createLogger("home-agent", config.log.level);
  mkdirSync(config.runDir, { recursive: true, mode: 0o700 });
  const store = await openStore(config.stateDir, log);
  const { uplink, address, dataPlane, maxEntries } = config.tunnel;
  const { tunnel, reason } = openHomeTunnel(dataPlane, { uplink, address, homePrefixes: config.home.prefixes, runDir: config.runDir, maxEntries });
  log.info({ dataPlane: tunnel.driver, reason, uplink, address }, `data plane: ${tunnel.driver} (${reason})`);
  const homeLan = openHomeLan(config, log);
  // Before anything is set there, so that no loss of it is overlooked.
  const news = new LinuxUplinkNews({ uplink, address });
  const clock = new SystemClock();
  const homeAgent = await HomeAgent.open({ config, readConfig: () => readHomeAgentConfig(configFile), clock, log, tunnel, homeLan, pathWire: new LinuxPathWire(), store, version: careofVersion() });
  const mender = new UplinkMender({ uplink, news, clock, log, renew: () => homeAgent.setRoutes(), mended: (reason) => { homeAgent.metrics.uplinkLosses.inc({ reason }); } });
  const reload = (): void => {
    homeAgent.reload().catch((thrown: unknown) => {
      const error = toCareofError(thrown);
      log.error({ code: error.code }, `the changed configuration was not taken over: ${error.message}`);
    });
  };
  process.on("SIGHUP", reload);
  try {
    await homeAgent.start();
    mender.start();
    await aborted(signal);
    log.info("stopping; the tunnels stay");
  } finally {
    process.off("SIGHUP", reload);
    mender.close();
    await homeAgent.close();
  }
}

/** @throws CareofError `no-link`, `unsupported` */
function openHomeLan({ home, tunnel, runDir }: HomeAgentConfig, log: Logger): HomeLan | null {
  const warn = (detail: string): void => { log.warn({ detail }, "settings of an interface that careof has used"); };
  if (home.interface === null) {
    const left = stopAnswering(runDir, warn);
    if (left > 0) log.info({ addresses: left }, "home side: routed; what was answered for on a home LAN before is not any more");
    return null;
  }
  const homeLan = new LinuxHomeLan({ interface: home.interface, maxEntries: tunnel.maxEntries, runDir, warn });
  log.info({ interface: home.interface }, `home side: proxy-arp on ${home.interface}`);
  return homeLan;
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => { resolve(); }, { once: true });
  });
}
