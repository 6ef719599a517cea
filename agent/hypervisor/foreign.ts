import { z } from "zod";
import type { Clock } from "../../model/clock.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type VmId } from "../../model/ids.js";
import type { GuestIdentity } from "./driver.js";
import { listenerOf } from "./listener.js";
import { identifyProcess } from "./process.js";
import { Qmp } from "./qmp.js";

const CONNECT_LIMIT = millis(2000);
const COMMAND_LIMIT = millis(3000);

const memorySummary = z.looseObject({ "base-memory": z.number() });
const runState = z.looseObject({ status: z.string(), running: z.boolean() });

/**
 * Looks at a QEMU that somebody else has started, and changes nothing there.
 * @throws CareofError `adopt-failed`: nobody listens on `control`, or somebody else has that monitor; `not-running`; `unsupported`: its memory is not what the
 * configuration says, so that no QEMU of ours could receive the guest
 */
export async function meet(vm: VmId, control: string, memoryBytes: number, clock: Clock): Promise<{ readonly qmp: Qmp; readonly identity: GuestIdentity }> {
  const pid = listenerOf(control);
  const process = pid === null ? null : identifyProcess(pid);
  if (process === null) throw new CareofError("adopt-failed", `no process listens on ${control}: is ${vm} started, with -qmp unix:${control},server=on,wait=off?`);
  let qmp: Qmp;
  try {
    qmp = await Qmp.connect(control, clock, CONNECT_LIMIT);
  } catch (cause) {
    throw new CareofError("adopt-failed", `process ${String(pid)} does not answer on ${control} (${toCareofError(cause).message}): a monitor has one client at a time, give careof one of its own`, { cause });
  }
  try {
    const { status, running } = runState.parse(await qmp.execute("query-status", {}, COMMAND_LIMIT));
    if (!running) throw new CareofError("not-running", `${vm} is there and ${status}, not running`);
    const memory = memorySummary.parse(await qmp.execute("query-memory-size-summary", {}, COMMAND_LIMIT))["base-memory"];
    if (memory !== memoryBytes) throw new CareofError("unsupported", `${vm} runs with ${String(memory)} bytes of memory there, and qemu.memory says ${String(memoryBytes)}: it could not move`);
    return { qmp, identity: { ...process, control, console: "" } };
  } catch (thrown) {
    qmp.close();
    throw thrown;
  }
}
