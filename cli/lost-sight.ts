import { CareofError, toCareofError } from "../model/errors.js";
import type { HostId, VmId } from "../model/ids.js";
import { NO_ANSWER, type ApiClient } from "./api-client.js";
import type { MigrationReply } from "./replies.js";

/** How a move ended that nobody watched to its end. `unknown`: it may go on; `view` is the last that was heard, `error` why it was no more. */
export type Sighted =
  | { readonly outcome: "ended"; readonly view: MigrationReply }
  | { readonly outcome: "unknown"; readonly view: MigrationReply; readonly error: CareofError };

/**
 * Begins a move. When no answer came, it may have begun all the same: then it is looked for.
 * @throws CareofError the refusal, or a code of `NO_ANSWER` when it was not found either
 */
export async function begunMove(api: ApiClient, vm: VmId, to: HostId, begin: () => Promise<MigrationReply>): Promise<MigrationReply> {
  try {
    return await begin();
  } catch (thrown) {
    const error = toCareofError(thrown);
    if (!NO_ANSWER.has(error.code)) throw error;
    const found = await api.migrations().then((all) => all.find((each) => each.vm === vm && each.to === to && each.result === null), () => undefined);
    if (found === undefined) throw error;
    return found;
  }
}

/** What can still be known of a move that cannot be followed any more. A home agent that was restarted meanwhile knows no moves that ended before; but where the VM is. */
export async function lostSight(api: ApiClient, vm: VmId, last: MigrationReply, error: CareofError): Promise<Sighted> {
  const now = error.code === "unknown-migration" ? await api.vm(vm).catch(() => null) : null;
  if (now?.host === last.to && now.state === "bound") return { outcome: "ended", view: { ...last, result: "completed", reason: null, detail: error.message } };
  if (now === null) return { outcome: "unknown", view: last, error };
  return { outcome: "unknown", view: last, error: new CareofError(error.code, `${error.message}; ${vm} is ${now.state}${now.host === null ? "" : ` in care of ${now.host}`}`, { cause: error }) };
}
