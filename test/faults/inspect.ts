import { z } from "zod";
import { ipv4 } from "../../model/address.js";
import { openHomeTunnel, openHostTunnel } from "../../net/data-plane.js";

/** A program of its own, started in a namespace of the lab: prints the tunnel's entries there as the kernel has them, and changes nothing. */
const arguments_ = z.object({ side: z.enum(["home", "host"]), uplink: z.string(), address: z.string(), homeAgent: z.string(), runDir: z.string(), maxEntries: z.number() });
const { side, uplink, address, homeAgent, runDir, maxEntries } = arguments_.parse(JSON.parse(process.argv[2] ?? ""));

const { tunnel } = side === "home"
  ? openHomeTunnel("auto", { uplink, address: ipv4(address), homePrefixes: [], runDir, maxEntries })
  : openHostTunnel("auto", { uplink, careOf: ipv4(address), homeAgents: [ipv4(homeAgent)], pathMtu: 0, runDir, maxEntries });
process.stdout.write(`${JSON.stringify(tunnel.entries())}\n`);
await tunnel.close({ keep: true });
