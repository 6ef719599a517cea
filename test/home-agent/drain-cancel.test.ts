import t from "tap";
import { hear, newDrain, step } from "../../home-agent/drains/drain.js";
import type { SceneVm } from "../../home-agent/drains/placement.js";
import { epoch, migrationId, vmId } from "../../model/ids.js";
import { A, B, begun, NOW, scene, vm, WISH } from "./drain-scene.js";

await t.test("cancelled with a move asked for that has not begun: it is cancelled as it begins, and what a person moves meanwhile is not", (t) => {
  const vms = [vm("vm1"), vm("vm2"), vm("vm3")];
  const moves = (name: string, number: number): SceneVm => vm(name, { phase: "moving", move: { id: migrationId(vmId(name), epoch(number)), from: A, to: B } });
  const begin = step(...begun(newDrain(A, WISH, NOW)), scene(vms));
  t.strictSame(begin.moves.map((move) => move.vm), ["vm1", "vm2"]);
  const [, , rest] = vms;
  if (rest === undefined) throw new Error("three VMs");
  const first = step(begin.drain, { type: "look" }, scene([moves("vm1", 7), vm("vm2"), rest]));
  const interrupted = step(first.drain, { type: "interrupt", cancel: true }, scene([moves("vm1", 7), vm("vm2"), rest]));
  t.strictSame(interrupted.cancels, ["vm1@7"], "vm2 has been asked for, and does not move yet");
  for (const heard of [[], [{ type: "answered", vm: vmId("vm2"), to: B, reason: "accepted", detail: "" }] as const]) {
    const now = scene([moves("vm1", 7), moves("vm2", 8), moves("vm3", 9)]);
    const later = step(hear(interrupted.drain, heard, now), { type: "look" }, now);
    t.strictSame(later.cancels, ["vm2@8"]);
    t.strictSame(step(later.drain, { type: "look" }, now).cancels, [], "once");
    const again = step(later.drain, { type: "begin", wish: WISH, now: NOW }, now);
    t.strictSame([again.drain.cancelling, again.cancels], [false, []], "begun again, nothing is cancelled");
  }
  const kept = step(first.drain, { type: "interrupt", cancel: false }, scene([moves("vm1", 7), vm("vm2"), rest]));
  t.strictSame(step(kept.drain, { type: "look" }, scene([moves("vm1", 7), moves("vm2", 8), rest])).cancels, [], "only interrupted, it goes on");
  t.end();
});
