import { join } from "node:path";
import type { z } from "zod";
import { chooseAccelerator } from "../../agent/hypervisor/accelerator.js";
import { endProcess, pause, spawnDetached, type ProcessIdentity } from "../../agent/hypervisor/process.js";
import { qemuArgs } from "../../agent/hypervisor/qemu-args.js";
import { Qmp, type QmpEvent } from "../../agent/hypervisor/qmp.js";
import type { GuestSpec } from "../../agent/hypervisor/driver.js";
import { inNamespace } from "../../deploy/lab/command.js";
import type { Clock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { millis } from "../../model/ids.js";

const QEMU = "qemu-system-x86_64";
/** A disk that is flushed behind its copy, on a busy machine. */
const COMMAND_LIMIT = millis(20_000);
const START_LIMIT_MS = 10_000;
const EVENT_LIMIT_MS = 60_000;

export interface BareStart {
  /** Files of this QEMU; there before. */
  readonly directory: string;
  readonly namespace: string;
  readonly spec: GuestSpec;
  readonly incoming: boolean;
  readonly clock: Clock;
}

/** One QEMU as a person starts it, with careof's own command line but for `-S`: what has arrived runs. */
export class BareQemu {
  readonly identity: ProcessIdentity;
  readonly #qmp: Qmp;
  readonly #clock: Clock;

  private constructor(identity: ProcessIdentity, qmp: Qmp, clock: Clock) {
    this.identity = identity;
    this.#qmp = qmp;
    this.#clock = clock;
  }

  static async start({ directory, namespace, spec, incoming, clock }: BareStart): Promise<BareQemu> {
    const base = join(directory, `bare@${String(spec.epoch)}`);
    const files = { control: `${base}.qmp`, pidFile: `${base}.pid`, console: `${base}.log` };
    const { accelerator } = await chooseAccelerator({ binary: QEMU, wish: "auto", kernel: spec.qemu.kernel, directory, clock });
    const [program = "", ...words] = inNamespace(namespace, [QEMU, ...qemuArgs(spec, files, { accelerator, incoming }).filter((word) => word !== "-S")]);
    const { identity } = await spawnDetached(program, words, `${base}.qemu`);
    const end = clock.monotonic() + START_LIMIT_MS;
    for (;;) {
      try {
        return new BareQemu(identity, await Qmp.connect(files.control, clock, millis(2000)), clock);
      } catch (cause) {
        if (clock.monotonic() > end) {
          await endProcess(identity, clock);
          throw new CareofError("start-failed", `the bare QEMU does not start: see ${base}.qemu`, { cause });
        }
        await pause(clock);
      }
    }
  }

  execute(command: string, parameters: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return this.#qmp.execute(command, parameters, COMMAND_LIMIT);
  }

  async query<T>(schema: z.ZodType<T>, command: string): Promise<T> {
    return schema.parse(await this.execute(command));
  }

  /** Ask before what causes it is done. Rejects when QEMU does not say it within a minute. */
  heard(what: string, wanted: (event: QmpEvent) => boolean): Promise<QmpEvent> {
    return new Promise((resolve, reject) => {
      const limit = this.#clock.after("bare-event", millis(EVENT_LIMIT_MS), () => {
        stop();
        reject(new CareofError("timed-out", `the bare QEMU did not say within ${String(EVENT_LIMIT_MS)} ms: ${what}`));
      });
      const stop = this.#qmp.subscribe((event) => {
        if (!wanted(event)) return;
        stop();
        limit.cancel();
        resolve(event);
      });
    });
  }

  /** The stream's state, or its failure. */
  async reaches(status: string): Promise<void> {
    const { data } = await this.heard(`stream ${status}`, (event) => event.name === "MIGRATION" && (event.data["status"] === status || event.data["status"] === "failed"));
    if (data["status"] !== status) throw new CareofError("control-failed", `the bare migration failed before it was ${status}`);
  }

  signal(name: "SIGSTOP" | "SIGCONT"): void {
    process.kill(this.identity.pid, name);
  }

  async end(): Promise<void> {
    await endProcess(this.identity, this.#clock);
    this.#qmp.close();
  }
}
