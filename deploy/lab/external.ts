import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { request } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CareofError } from "../../model/errors.js";
import { inNamespace, must } from "./command.js";
import { Lab, type LabOptions } from "./lab.js";
import { guestNamespaceOf, HOSTS, PLAN, type HostName } from "./plan.js";
import { REPOSITORY } from "./program.js";
import { trafficProgram } from "./traffic.js";

const GATEWAY_MAC = "02:ca:0f:00:00:01";
/** The port's name on either host, and the pattern that the configuration has for it. */
const PORT = "tap-web1";
const PATTERN = "tap-web*";
/** The VM's end of the cable to either host. */
const CABLE: Readonly<Record<HostName, string>> = { "host-a": "cablea", "host-b": "cableb" };
const NUMBERS_PORT = 7003;
/** Where nothing is about time a slow machine gets as much as it wants. */
const BOUND_MS = 60_000;
/** So long before the move the new port of a live migration is there, at least. */
const READY_MS = 150;

const reportSchema = z.object({ received: z.number(), lost: z.number(), duplicated: z.number(), reordered: z.number(), longestMs: z.number() });
const sentSchema = z.object({ sent: z.number() });

/** Between two looks at the silent VM. `longestMs` is the longest silence that it saw, of a packet every millisecond. */
export type SilentReport = z.infer<typeof reportSchema>;

const flipSchema = z.object({ pulledAt: z.number(), pluggedAt: z.number(), cutMs: z.number() });

/** CLOCK_MONOTONIC milliseconds. `cutMs`: so long the VM had no cable at all. */
export type Flip = z.infer<typeof flipSchema>;

export interface FlipOptions {
  /**
   * `pull`: the old cable comes out before the new one is in, so that the VM can neither hear nor be heard for a moment. `plug`: after it. `switch`: the new one is
   * in some time before the VM uses it, as the new port of a live migration is. `linger`: the old one stays in until `cleanUp`.
   */
  readonly order?: "pull" | "plug" | "switch" | "linger";
  /** What the VM says when it is plugged in: nothing of its own, or what a hypervisor says for it. */
  readonly announce?: "quiet" | "rarp" | "gratuitous-arp";
}

/**
 * A lab whose VM is a network namespace with a cable to each host, one of them plugged in: what careof sees of a VM that libvirt, Proxmox or a person moves. No QEMU.
 * Both ends of the cables have the same MAC and the VM the same address; its traffic is traffic.c's, or numbered packets to a VM that never says a word.
 */
export class ExternalLab {
  readonly lab: Lab;
  readonly guest: string;
  readonly #children: ChildProcessWithoutNullStreams[] = [];
  #flipper: Talker | null = null;
  #serves = false;
  #at: HostName | null = null;

  private constructor(lab: Lab) {
    this.lab = lab;
    this.guest = guestNamespaceOf(lab.run);
  }

  /** All parts up, the VM plugged in at host A and bound there. */
  static async start(options: LabOptions = {}): Promise<ExternalLab> {
    const { name, address, mac, keyId } = PLAN.guest;
    const vm = { name, homeAddresses: [address], mac, keyFile: `${name}.key`, keyId, hosts: [...HOSTS], driver: "external", external: { port: PATTERN } };
    const lab = await Lab.make({ ...options, homeAgent: { vms: [vm], ...options.homeAgent } });
    const external = new ExternalLab(lab);
    try {
      await external.#makeGuest();
      lab.startPart("home-agent");
      for (const host of HOSTS) lab.startPart(host);
      await lab.connected(HOSTS, 180_000);
      await external.flip("host-a");
      await external.boundAt("host-a");
      return external;
    } catch (thrown) {
      await external.close();
      throw thrown;
    }
  }

  /** Where the cable is. */
  get at(): HostName | null {
    return this.#at;
  }

  get other(): HostName {
    return this.#at === "host-a" ? "host-b" : "host-a";
  }

  /** Plugs the VM in at `to`. */
  async flip(to: HostName, { order = "pull", announce = "quiet" }: FlipOptions = {}): Promise<Flip> {
    const from = this.#at === null ? "-" : CABLE[this.#at];
    const flipper = this.#require(this.#flipper);
    const line = (what: string): string => `${what} ${from} ${CABLE[to]} ${announce} ${PLAN.guest.address}`;
    if (order === "switch") {
      await flipper.ask(line("ready"));
      await sleep(READY_MS);
    }
    this.#at = to;
    return flipSchema.parse(JSON.parse(await flipper.ask(line(order))));
  }

  /** What whatever moves VMs does in the end: the port that the VM has left is removed from that host. Another one is there at once, without a VM. */
  async cleanUp(host: HostName): Promise<void> {
    await must(inNamespace(this.lab.namespace(PLAN.hosts[host].node), ["ip", "link", "del", PORT]));
    await this.#makeCable(host);
  }

  /** What a hook would do on that host. @throws CareofError with the agent's reason */
  async tell(host: HostName, what: "leave" | "arrive", body: object = {}): Promise<unknown> {
    const socketPath = join(this.lab.directory, host, "run", "control.sock");
    return new Promise((resolve, reject) => {
      const call = request({ socketPath, method: "POST", path: `/v1/ports/${PLAN.guest.name}/${what}`, headers: { "content-type": "application/json" } }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part: string) => { text += part; }).on("end", () => {
          if (response.statusCode === 200) resolve(JSON.parse(text));
          else reject(new CareofError("refused", `${host} refuses ${what}: ${text.trim()}`));
        });
      });
      call.on("error", reject);
      call.end(JSON.stringify(body));
    });
  }

  async boundAt(host: HostName, limitMs = BOUND_MS): Promise<void> {
    await this.lab.until(`the VM is bound to ${host}`, limitMs, async () => {
      const { host: owner, state } = await this.lab.where();
      return owner === host && state === "bound";
    });
  }

  /** Idempotent. The VM's end of traffic.c; the correspondent's is `lab.traffic`. */
  async serve(): Promise<void> {
    if (this.#serves) return;
    this.#serves = true;
    const child = this.#start(inNamespace(this.guest, [await trafficProgram(), "serve"]));
    child.on("error", (cause) => { throw cause; });
    await sleep(200);
  }

  /** Packets to a VM that never sends one. */
  async silent(pps: number): Promise<SilentTraffic> {
    const program = join(REPOSITORY, "dist", "deploy", "lab", "run-numbers.js");
    const receiver = new Talker(this.#start(inNamespace(this.guest, [process.execPath, program, "receive", PLAN.guest.address, String(NUMBERS_PORT)])));
    await receiver.line();
    const sender = new Talker(this.#start(inNamespace(this.lab.namespace("c"), [process.execPath, program, "send", PLAN.guest.address, String(NUMBERS_PORT), String(pps)])));
    const traffic = new SilentTraffic(receiver, sender);
    await sleep(500);
    await traffic.look();
    return traffic;
  }

  /** Ends and removes everything, and says what is left. */
  async close(): Promise<string[]> {
    for (const child of this.#children) child.kill("SIGKILL");
    return this.lab.close();
  }

  #require<T>(value: T | null): T {
    if (value === null) throw new CareofError("lab-closed", "the lab has not been made");
    return value;
  }

  #start(words: readonly string[]): ChildProcessWithoutNullStreams {
    const child = spawn(words[0] ?? "", words.slice(1), { stdio: "pipe", detached: true });
    child.stdin.on("error", () => undefined);
    child.stderr.resume();
    this.#children.push(child);
    return child;
  }

  async #makeCable(host: HostName): Promise<void> {
    const node = this.lab.namespace(PLAN.hosts[host].node);
    // Different numbers at both ends: the kernel tells of a cable at once only where it can tell the ends apart.
    await must(inNamespace(this.guest, ["ip", "link", "add", CABLE[host], "index", String(100 + HOSTS.indexOf(host)), "address", PLAN.guest.mac, "type", "veth", "peer", "name", PORT, "netns", node]));
    await must(inNamespace(node, ["ip", "link", "set", PORT, "up"]));
  }

  async #makeGuest(): Promise<void> {
    await must(["ip", "netns", "add", this.guest]);
    for (const host of HOSTS) await this.#makeCable(host);
    await must(inNamespace(this.guest, ["ip", "-batch", "-"]), { input: ["link set lo up", `addr add ${PLAN.guest.address}/32 dev lo`].join("\n") });
    this.#flipper = new Talker(this.#start(inNamespace(this.guest, [process.execPath, join(REPOSITORY, "dist", "deploy", "lab", "run-flip.js"), PLAN.gateway, GATEWAY_MAC])));
    await this.#flipper.line();
    await must(inNamespace(this.guest, ["sh", "-c", "for f in all default cablea cableb; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done 2>/dev/null; true"]));
  }
}

/** A program that answers each line by a line. */
class Talker {
  readonly child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;

  constructor(child: ChildProcessWithoutNullStreams) {
    this.child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  /** @throws CareofError `lab-program-ended` */
  async line(): Promise<string> {
    const next = await this.#lines.next();
    if (next.done === true) throw new CareofError("lab-program-ended", "a program of the lab has ended");
    return next.value;
  }

  async ask(text: string): Promise<string> {
    this.child.stdin.write(`${text}\n`);
    return this.line();
  }
}

/** Numbered packets down, counted in the VM. */
export class SilentTraffic {
  readonly #receiver: Talker;
  readonly #sender: Talker;

  constructor(receiver: Talker, sender: Talker) {
    this.#receiver = receiver;
    this.#sender = sender;
  }

  /** What the VM has received since the last call. */
  async look(): Promise<SilentReport> {
    return reportSchema.parse(JSON.parse(await this.#receiver.ask("report")));
  }

  /** Ends the sender; returns how many it has sent. */
  async end(): Promise<number> {
    this.#sender.child.stdin.end();
    return sentSchema.parse(JSON.parse(await this.#sender.line())).sent;
  }
}
