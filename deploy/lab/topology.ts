import { inNamespace, must } from "./command.js";
import type { LabPlan, Node } from "./plan.js";
import { Wire } from "./wires.js";

/**
 * Makes the namespaces and links of `plan`, from nothing or from what an interrupted call left. Called once per run, before any part starts; the parts
 * themselves never spawn `ip`.
 * Returns the cables that have a length, in the order of the plan; they last until they are closed.
 * @throws CareofError `command-failed` with what the kernel said
 */
export async function makeTopology(plan: LabPlan): Promise<readonly Wire[]> {
  const wires: Wire[] = [];
  const present = new Set((await must(["ip", "netns", "list"])).split("\n").map((line) => line.split(" ")[0] ?? ""));
  for (const name of Object.values(plan.namespaces)) {
    if (present.has(name)) await must(["ip", "netns", "del", name]);
    await must(["ip", "netns", "add", name]);
  }
  for (const [left, right, wire] of plan.links) {
    if (wire !== undefined) {
      const end = ({ node, name }: typeof left): { namespace: string; name: string } => ({ namespace: plan.namespaces[node], name });
      wires.push(await Wire.open({ run: plan.run, left: end(left), right: end(right), delay: wire }));
      continue;
    }
    await must(inNamespace(plan.namespaces[left.node], ["ip", "link", "add", left.name, "type", "veth", "peer", "name", right.name, "netns", plan.namespaces[right.node]]));
  }
  for (const node of nodes(plan)) {
    const ends = plan.links.flatMap(([left, right]) => [left, right]).filter((end) => end.node === node);
    await must(inNamespace(plan.namespaces[node], ["ip", "-batch", "-"]), {
      input: [
        "link set lo up",
        ...ends.flatMap((end) => [`addr add ${end.address} dev ${end.name}`, `link set ${end.name} up`]),
        ...plan.routes.filter((route) => route.node === node).map((route) => `route add ${route.to} via ${route.via}`),
      ].join("\n"),
    });
    await must(inNamespace(plan.namespaces[node], ["sh", "-c", settings(plan, node)]));
  }
  await must(inNamespace(plan.namespaces.r, ["ip", "-batch", "-"]), { input: narrowed(plan).join("\n") });
  return wires;
}

/** A route's MTU is what its router compares with before it forwards; the way back is told apart by its source. */
function narrowed({ pathMtus }: LabPlan): string[] {
  const sides = [{ host: "host-a", subnet: "10.1.0.0/24", device: "suba0" }, { host: "host-b", subnet: "10.2.0.0/24", device: "subb0" }] as const;
  return sides.flatMap(({ host, subnet, device }, index) => {
    const mtu = pathMtus[host];
    const table = String(101 + index);
    return mtu === undefined ? [] : [
      `route replace ${subnet} dev ${device} mtu ${String(mtu)}`, `route add 192.0.2.0/24 dev core0 mtu ${String(mtu)} table ${table}`, `rule add from ${subnet} table ${table}`,
    ];
  });
}

/** Without IPv6, whose multicast would be the only traffic that nobody sent. */
function settings(plan: LabPlan, node: Node): string {
  return [
    "test ! -e /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
    `echo ${plan.forwarding.includes(node) ? "1" : "0"} > /proc/sys/net/ipv4/ip_forward`,
  ].join(" && ");
}

function nodes(plan: LabPlan): Node[] {
  return Object.keys(plan.namespaces).filter((name): name is Node => name in plan.namespaces);
}
