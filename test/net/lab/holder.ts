import { prefix } from "../../../model/address.js";
import { openHomeTunnel } from "../../../net/data-plane.js";
import type { HomeEntry } from "../../../net/tunnel.js";
import { HOME_AGENT } from "./topology.js";

/* A process that sets a home agent's entries and then waits to be killed: holder.js DRIVER RUNDIR ENTRIES (JSON). Says {"ready"}. */
const [driver, runDir = "", entries = "[]"] = process.argv.slice(2);
const { tunnel } = openHomeTunnel(driver === "ipip" ? "ipip" : "bpf", { uplink: "uplink", address: HOME_AGENT, homePrefixes: [prefix("198.51.100.0/24")], runDir, maxEntries: 20_000 });
await tunnel.set(JSON.parse(entries) as readonly HomeEntry[]);
process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
setInterval(() => undefined, 60_000);
