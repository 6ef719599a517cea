import { join } from "node:path";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { guestNamespaceOf, labPlan, newRunId, PLAN, type Node } from "../../deploy/lab/plan.js";
import { Reaper } from "../../deploy/lab/reaper.js";
import { labDirectory, register, removeRun } from "../../deploy/lab/registry.js";
import { makeTopology } from "../../deploy/lab/topology.js";

/** RFC 2544's addresses for benchmarks: as many home addresses as are wanted, in a row. */
export const HOME_PREFIX = "198.18.0.0/15";
export const FIRST_HOME = "198.18.0.1";
export const PORT = "vm1";
/** The guest is a namespace: its traffic costs no emulator's time. */
export const GUEST_MAC = PLAN.guest.mac;
const PORT_MAC = "02:ca:0f:00:00:01";

/**
 * The lab's five machines in a row, correspondent – home agent – router – host A – guest, with nothing yet between home agent and host but plain routing. Every variant
 * gets one of its own, all of them stand ready, and the rounds go from one to the next.
 */
export class Network {
  readonly run: string;
  readonly guest: string;
  readonly #reaper: Reaper;
  readonly #nodes: Readonly<Record<Node, string>>;

  private constructor(run: string, nodes: Readonly<Record<Node, string>>, reaper: Reaper) {
    this.run = run;
    this.guest = guestNamespaceOf(run);
    this.#nodes = nodes;
    this.#reaper = reaper;
  }

  /** `guestMtu` is what the way to the home agent leaves for inner packets. */
  static async make(guestMtu: number): Promise<Network> {
    const run = newRunId();
    register(run);
    const reaper = new Reaper(run);
    try {
      const plan = labPlan(run);
      await makeTopology(plan);
      const network = new Network(run, plan.namespaces, reaper);
      await network.#makeGuest(guestMtu);
      return network;
    } catch (thrown) {
      await removeRun(run);
      reaper.dismiss();
      throw thrown;
    }
  }

  name(node: Node): string {
    return this.#nodes[node];
  }

  path(node: Node): string {
    return `/run/netns/${this.#nodes[node]}`;
  }

  directory(node: Node): string {
    return join(labDirectory(this.run), node);
  }

  /** Lines for `ip -batch`. */
  async ip(node: Node, ...lines: readonly string[]): Promise<void> {
    await must(inNamespace(this.#nodes[node], ["ip", "-batch", "-"]), { input: lines.join("\n") });
  }

  /** What the host must know of the guest where no driver of ours sees to it. */
  async plainPort(): Promise<void> {
    await this.ip("a", `link set ${PORT} address ${PORT_MAC}`, `addr add ${PLAN.gateway}/32 dev ${PORT}`,
      `route add ${FIRST_HOME}/32 dev ${PORT}`, `route add ${HOME_PREFIX} via ${FIRST_HOME} dev ${PORT}`, `neigh replace ${FIRST_HOME} lladdr ${GUEST_MAC} dev ${PORT} nud permanent`);
  }

  async close(): Promise<void> {
    const left = await removeRun(this.run);
    this.#reaper.dismiss();
    if (left.length > 0) process.stderr.write(`left over: ${left.join(", ")}\n`);
  }

  /** It answers on every home address there is. */
  async #makeGuest(mtu: number): Promise<void> {
    await must(["ip", "netns", "add", this.guest]);
    const { a } = this.#nodes;
    await must(inNamespace(a, ["ip", "link", "add", PORT, "type", "veth", "peer", "name", "eth0", "netns", this.guest]));
    for (const name of [a, this.guest]) await must(inNamespace(name, ["sh", "-c", "test ! -e /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]));
    await this.ip("a", `link set ${PORT} mtu ${String(mtu)} up`);
    await must(inNamespace(this.guest, ["ip", "-batch", "-"]), {
      input: [
        "link set lo up", `link set eth0 address ${GUEST_MAC} mtu ${String(mtu)} up`, `addr add ${FIRST_HOME}/32 dev eth0`, `route add local ${HOME_PREFIX} dev lo table local`,
        `route add default via ${PLAN.gateway} dev eth0 onlink`, `neigh replace ${PLAN.gateway} lladdr ${PORT_MAC} dev eth0 nud permanent`,
      ].join("\n"),
    });
  }
}
