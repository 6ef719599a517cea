import { randomBytes } from "node:crypto";
import { CareofError, toCareofError } from "../model/errors.js";
import { millis, type HostId, type MigrationId, type Millis } from "../model/ids.js";
import { isReason, type Reason } from "../model/reasons.js";
import { Refused } from "../proto/channel.js";
import type { Body } from "../proto/messages.js";
import { hasLocalDisks, requireAbility } from "./abilities.js";
import type { HandoverConfig, Timing, VmConfig } from "./config.js";
import type { Migration, VmEvent, VmState } from "./handover/migration.js";
import type { Hosts } from "./hosts.js";
import { parametersOf, requireLocator, specFor } from "./messages.js";
import type { Question } from "./outcome.js";

/** RFC 4279 leaves it open; as long as the hash behind the relay's TLS-PSK. */
const SECRET_BYTES = 32;
/** A host must take a short word (lead, abort, resume, revoke) within this. */
export const WORD_MS = millis(5000);
/** A migration must have begun, or a stop have ended beyond the guest's own patience, within this. */
const BEGIN_MS = millis(20_000);

export interface QuestionContext {
  readonly hosts: Hosts;
  readonly handover: HandoverConfig;
  readonly timing: Timing;
}

/** Puts the machines' questions into words for a host, and its answers into events. */
export class Questioner {
  readonly #context: () => QuestionContext;
  /** The relays' secrets of migrations whose source has not been asked yet. */
  readonly #secrets = new Map<MigrationId, Uint8Array>();

  constructor(context: () => QuestionContext) {
    this.#context = context;
  }

  forget(migration: MigrationId): void {
    this.#secrets.delete(migration);
  }

  /** The event that the answer, or its absence, means for the VM; `null` for none. Never rejects. */
  async ask(vm: VmConfig, state: VmState, host: HostId, what: Question): Promise<{ readonly event: VmEvent | null; readonly reason: Reason; readonly detail: string }> {
    const failed = (thrown: unknown): { readonly reason: Reason; readonly detail: string; readonly answered: boolean } => {
      const error = toCareofError(thrown);
      return { reason: isReason(error.code) ? error.code : "host-gone", detail: error.message, answered: thrown instanceof Refused };
    };
    try {
      const { event, reason, detail } = await this.#put(vm, state, host, what);
      return { event, reason, detail };
    } catch (thrown) {
      const { reason, detail, answered } = failed(thrown);
      return { event: this.#refused(state.migration, host, what, reason, detail, answered), reason, detail };
    }
  }

  async #put(vm: VmConfig, state: VmState, host: HostId, what: Question): Promise<{ readonly event: VmEvent | null; readonly reason: Reason; readonly detail: string }> {
    const { hosts, timing, handover } = this.#context();
    const session = hosts.require(host);
    const decided = async (body: Body, limit: Millis): Promise<Body<"decision">> => {
      const answer = await session.ask(body, "decision", limit);
      if (answer.reason !== "accepted") throw new Refused(answer);
      return answer;
    };
    const { migration } = state;
    switch (what.ask) {
      case "start":
        if (vm.adopt.has(host)) requireAbility(session, "adopts");
        if (hasLocalDisks(vm)) requireAbility(session, "localDisks");
        await decided({ kind: "startVm", spec: specFor(vm, host), epoch: what.epoch, adopt: vm.adopt.get(host) ?? null }, timing.startMs);
        return done({ type: "started", host, epoch: what.epoch });
      case "stop":
        if (what.giveBack === true) requireAbility(session, "adopts");
        return done({
          type: "stopped", host, epoch: what.epoch,
          detail: (await decided({ kind: "stopVm", vm: vm.name, epoch: what.epoch, force: what.force, patienceMs: timing.stopPatienceMs, giveBack: what.giveBack ?? false }, stopLimit(timing))).detail,
        });
      case "prepare": {
        const { id, from, epoch, lead, plan } = open(migration);
        if (plan.postcopy && hasLocalDisks(vm)) throw new CareofError("unsupported", "postcopy moves no disks: a guest that is lost on the way would take them along");
        for (const each of [hosts.require(from), session]) {
          if (hasLocalDisks(vm)) requireAbility(each, "localDisks");
          if (plan.postcopy) requireAbility(each, "postcopy");
        }
        const disks = hasLocalDisks(vm) ? (await hosts.require(from).ask({ kind: "describeDisks", vm: vm.name }, "disksDescribed", WORD_MS)).disks : [];
        const secret = Uint8Array.from(randomBytes(SECRET_BYTES));
        this.#secrets.set(id, secret);
        const parameters = parametersOf(plan, handover, lead);
        const body: Body = { kind: "prepare", migration: id, spec: specFor(vm, host), epoch, source: from, sourceLocator: requireLocator(hosts, from), secret, parameters, disks };
        const answer = await session.ask(body, "prepared", handover.prepareMs);
        if (answer.decision.reason !== "accepted") throw new Refused({ kind: "decision", ...answer.decision });
        return done({ type: "prepared", migration: id, relayAddress: answer.relayAddress, relayPort: answer.relayPort, canLead: answer.canLead });
      }
      case "migrate": {
        const { id, to, epoch, plan } = open(migration);
        const secret = this.#secrets.get(id);
        this.#secrets.delete(id);
        if (secret === undefined) throw new CareofError("prepare-failed", `${id} has no secret for its relay`);
        const { relayAddress, relayPort, lead } = what;
        await decided({ kind: "migrate", migration: id, vm: vm.name, epoch, target: to, targetLocator: requireLocator(hosts, to), relayAddress, relayPort, secret, parameters: parametersOf(plan, handover, lead) }, BEGIN_MS);
        return done(null);
      }
      case "lead":
        await decided({ kind: "lead", migration: open(migration).id, token: what.token }, WORD_MS);
        return done(null);
      case "abort":
        await decided({ kind: "abort", migration: what.migration, vm: vm.name, reason: what.reason }, WORD_MS);
        return done(null);
      case "resume":
        await decided({ kind: "resume", migration: what.migration, vm: vm.name, epoch: what.epoch, evidence: what.evidence }, WORD_MS);
        return done(null);
      case "revoke":
        await decided({ kind: "revoke", vm: vm.name, epoch: what.epoch, forwardTo: what.forwardTo === null ? null : hosts.locator(what.forwardTo), graceMs: timing.graceMs }, WORD_MS);
        return done(null);
    }
  }

  #refused(migration: Migration | null, host: HostId, what: Question, reason: Reason, detail: string, answered: boolean): VmEvent | null {
    switch (what.ask) {
      case "start": return { type: "start-failed", host, epoch: what.epoch, reason: reason === "unspecified" ? "start-failed" : reason, detail, answered };
      case "stop": return { type: "stop-failed", reason: reason === "unspecified" ? "stop-failed" : reason, detail };
      case "prepare":
      case "migrate": return migration === null ? null : { type: "refused", migration: migration.id, ask: what.ask, reason, detail, answered };
      case "abort": return host === migration?.from && migration.id === what.migration ? { type: "refused", migration: what.migration, ask: "abort", reason, detail, answered } : null;
      case "lead":
      case "resume":
      case "revoke": return null;
    }
  }
}

/** A host must have stopped a guest within this. */
export function stopLimit(timing: Timing): Millis {
  return millis(timing.stopPatienceMs + BEGIN_MS);
}

function done(event: VmEvent | null): { readonly event: VmEvent | null; readonly reason: Reason; readonly detail: string } {
  return { event, reason: "accepted", detail: "" };
}

function open(migration: Migration | null): Migration {
  if (migration === null) throw new CareofError("not-moving", "a question of a migration that is over");
  return migration;
}
