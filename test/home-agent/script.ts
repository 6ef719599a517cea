import { changeState, unbound, type Now } from "../../home-agent/bindings/binding.js";
import { coordinate } from "../../home-agent/handover/coordinator.js";
import { durable, restore } from "../../home-agent/handover/durable.js";
import type { VmEvent, VmState } from "../../home-agent/handover/migration.js";
import type { HostLife } from "../../home-agent/host-life.js";
import { epoch, migrationId, millis, NEVER_BOUND } from "../../model/ids.js";
import type { MigrationRecord } from "../../proto/messages.js";
import { A, B, RULES, VM } from "./two-hosts.js";

export const NOW: Now = { mono: millis(1000), wall: millis(1_700_000_000_000) };
export const LIFE: HostLife = { instance: "one", restartCounter: 7 };
export const MOVE = migrationId(VM, epoch(2));

/** The machine itself, so that hosts can say what well-behaved ones never would. After every event it forgets all that is not on disk. */
export class Script {
  state: VmState = { binding: changeState(unbound(VM, NEVER_BOUND), "bound", { owner: A, epoch: epoch(1), evidence: "started" }, NOW), migration: null, givenBack: [] };
  /** What the last event led to. */
  effects: readonly string[] = [];

  go(event: VmEvent, { restart = false, now = NOW } = {}): string {
    const outcome = coordinate(this.state, event, now, RULES);
    this.state = restart ? restore(VM, JSON.parse(JSON.stringify(durable(outcome.state))), NOW) : outcome.state;
    this.effects = outcome.effects.map((effect) => (effect.do === "ask" ? `${effect.what.ask} ${effect.host}` : effect.do === "alarm" ? effect.alarm : effect.do));
    return outcome.reason;
  }

  get where(): readonly unknown[] {
    return [this.state.binding.phase, this.state.binding.owner, this.state.binding.epoch];
  }

  /** A says that there was nothing to abort, and owns the VM again. The target is out of reach. */
  givenBack(): void {
    this.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    this.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false });
    this.go({ type: "cancel", migration: MOVE });
    this.go({ type: "host-gone", host: B });
    this.go({ type: "refused", migration: MOVE, ask: "abort", reason: "not-moving", detail: "", answered: true }, { restart: true });
  }

  released(): string {
    return this.go({ type: "said", host: A, body: { kind: "released", migration: MOVE, epoch: epoch(2), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: false, forced: false } }, { restart: true });
  }

  running(postcopy = false): string {
    return this.go({ type: "said", host: B, body: { kind: "running", migration: MOVE, epoch: epoch(2), resumeAt: millis(1), firstDeliverableAt: null, uplinkOpenAt: null, pauseMs: null, pauseErrorMs: millis(1), final: !postcopy, overflowed: 0, postcopy, resumedAtSource: null } }, { restart: true });
  }

  /** The guest runs at B, and memory of it is still at A. */
  fetching(): void {
    this.go({ type: "migrate", host: B, actor: "operator", wishes: { postcopy: true }, sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
    this.go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: false }, { restart: true });
    this.go({ type: "said", host: A, body: { kind: "released", migration: MOVE, epoch: epoch(2), stopAt: millis(1), markerAt: null, bytes: 1, postcopy: true, forced: false } });
    this.running(true);
  }

  back(state: MigrationRecord["state"]): string {
    return this.go({ type: "host-back", host: B, life: LIFE, records: [{ migration: MOVE, side: "target", state, peer: A }], reported: state === "continued" ? "runs" : "absent" }, { restart: true });
  }

  neverRan(): string {
    return this.go({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-never-ran", reason: "cancelled-by-operator", detail: "", undelivered: null } }, { restart: true });
  }
}
