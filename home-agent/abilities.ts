import { NEVER_BOUND } from "../model/ids.js";
import { Refused } from "../proto/channel.js";
import type { Capabilities } from "../proto/messages.js";
import type { VmConfig } from "./config.js";
import type { HostSession } from "./hosts.js";

/** What agents of an earlier release do not know. They ignore the fields that say it, and would do something else instead: start a second guest, or stop one, or leave its disks behind, or copy on where postcopy was wanted. */
export type Ability = keyof Pick<Capabilities, "localDisks" | "adopts" | "postcopy">;

const WORDS: Readonly<Record<Ability, string>> = {
  localDisks: "knows no disks that move with their guest", adopts: "cannot adopt guests or let go of them", postcopy: "cannot move a guest whose memory follows it (postcopy)",
};

/** @throws Refused `unsupported`; nothing was asked of the host */
export function requireAbility({ host, capabilities, software }: Pick<HostSession, "host" | "capabilities" | "software">, ability: Ability): void {
  if (capabilities[ability]) return;
  throw new Refused({ kind: "decision", reason: "unsupported", epoch: NEVER_BOUND, detail: `the agent of ${host} (${software === "" ? "unknown" : software}) ${WORDS[ability]}: update it` });
}

export function hasLocalDisks({ qemu }: Pick<VmConfig, "qemu">): boolean {
  return qemu?.diskOptions.some(({ shared }) => !shared) ?? false;
}
