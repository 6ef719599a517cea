import { getPriority } from "node:os";
import { join } from "node:path";
import t from "tap";
import { spawnDetached } from "../../../agent/hypervisor/process.js";
import { isDeafSoon } from "../../../agent/migration/source-phases.js";
import type { SourcePhase } from "../../../agent/migration/source-shapes.js";
import { Urgency, type ProcessPriority } from "../../../agent/migration/urgency.js";
import { epoch, migrationId, vmId } from "../../../model/ids.js";
import { createLogger } from "../../../model/log.js";

const log = createLogger("test", "silent");
const ONE = migrationId(vmId("web1"), epoch(2));
const OTHER = migrationId(vmId("web2"), epoch(2));

class FakePriority implements ProcessPriority {
  readonly asked: number[] = [];
  constructor(readonly own: number, private readonly refuses = false) {}
  get(): number {
    return this.own;
  }

  set(nice: number): void {
    this.asked.push(nice);
    if (this.refuses) throw new Error("EACCES");
  }
}

t.test("urgent as long as one move is, and then as before", (t) => {
  const priority = new FakePriority(5);
  const urgency = new Urgency(log, priority);
  urgency.set(ONE, false);
  t.same(priority.asked, [], "nothing has changed");
  urgency.set(ONE, true);
  urgency.set(ONE, true);
  urgency.set(OTHER, true);
  urgency.set(ONE, false);
  t.same(priority.asked, [-20], "the other still is");
  urgency.set(OTHER, false);
  urgency.set(OTHER, false);
  t.same(priority.asked, [-20, 5]);
  t.end();
});

t.test("without the right to it nothing fails, and it is not asked for again", (t) => {
  const priority = new FakePriority(0, true);
  const urgency = new Urgency(log, priority);
  for (const urgent of [true, false, true]) urgency.set(ONE, urgent);
  t.same(priority.asked, [-20]);
  t.end();
});

t.test("from the lead until the guest stands", (t) => {
  const urgent: readonly SourcePhase[] = ["leading", "awaiting", "opened"];
  const others: readonly SourcePhase[] = ["starting", "mirroring", "copying", "stopped", "releasing", "serving", "released", "reclaiming", "returning", "runs", "gone", "revoked"];
  for (const phase of urgent) t.ok(isDeafSoon(phase), phase);
  for (const phase of others) t.notOk(isDeafSoon(phase), phase);
  t.end();
});

t.test("this process, and a guest that is started meanwhile", async (t) => {
  const ordinary = getPriority();
  const urgency = new Urgency(log);
  t.teardown(() => { urgency.set(ONE, false); });
  urgency.set(ONE, true);
  t.equal(getPriority(), -20);
  const { identity } = await spawnDetached("sleep", ["60"], join(t.testdir(), "log"));
  t.teardown(() => { process.kill(identity.pid, "SIGKILL"); });
  t.equal(getPriority(identity.pid), ordinary, "a guest is in no hurry");
  urgency.set(ONE, false);
  t.equal(getPriority(), ordinary);
});
