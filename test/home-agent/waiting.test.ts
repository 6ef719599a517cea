import t from "tap";
import type { MigrationView } from "../../home-agent/api/operations.js";
import { changeState, unbound, type Now } from "../../home-agent/bindings/binding.js";
import { coordinate } from "../../home-agent/handover/coordinator.js";
import type { VmEvent, VmState } from "../../home-agent/handover/migration.js";
import { OperatorDesk, type OperatorDeskOptions } from "../../home-agent/operator-desk.js";
import { Waiters } from "../../home-agent/waiters.js";
import { toCareofError } from "../../model/errors.js";
import { epoch, migrationId, millis, NEVER_BOUND } from "../../model/ids.js";
import { FakeClock } from "../model/fake-clock.js";
import { A, B, RULES, VM } from "./two-hosts.js";

const MOVE = migrationId(VM, epoch(2));

await t.test("who waits for a move waits for its disks too, as long as they are copied", async (t) => {
  const clock = new FakeClock();
  const now = (): Now => ({ mono: clock.monotonic(), wall: clock.now() });
  let state: VmState = { binding: changeState(unbound(VM, NEVER_BOUND), "bound", { owner: A, epoch: epoch(1), evidence: "started" }, now()), migration: null, givenBack: [] };
  const go = (event: VmEvent): void => { state = coordinate(state, event, now(), RULES).state; };
  go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: null, sourceCanLead: true });
  // What the desk has to do with, and no more.
  const parts = {
    cache: { state: () => state }, waiters: new Waiters(clock), book: { get: (): Partial<MigrationView> => ({ migration: MOVE, result: null }) },
    limits: () => ({ start: millis(1), stop: millis(1), migration: () => millis(1000) }),
  };
  const desk = new OperatorDesk(parts as unknown as OperatorDeskOptions);
  let ended = "";
  desk.migrationEnd(MOVE).then(() => { ended = "result"; }, (thrown: unknown) => { ended = toCareofError(thrown).code; });
  await clock.advanceAsync(100);
  go({ type: "prepared", migration: MOVE, relayAddress: "10.2.0.2", relayPort: 1, canLead: true });
  for (let word = 0; word < 30; word++) {
    await clock.advanceAsync(900);
    go({ type: "disks-copied", migration: MOVE });
    t.equal(ended, "");
  }
  await clock.advanceAsync(2000);
  t.equal(ended, "timed-out", "nothing was heard any more");
  t.same(clock.timers(), []);
});
