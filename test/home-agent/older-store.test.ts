import t from "tap";
import { changeState, unbound } from "../../home-agent/bindings/binding.js";
import type { VmState } from "../../home-agent/handover/migration.js";
import { epoch, NEVER_BOUND, type HostId } from "../../model/ids.js";
import type { MigrationRecord } from "../../proto/messages.js";
import { LIFE, MOVE, NOW, Script } from "./script.js";
import { A, B, VM } from "./two-hosts.js";

const nobody = unbound(VM, NEVER_BOUND);
/** What the home agent knows of the VM when its store was lost, or is an older copy. Every host has been in web1@2 since. */
const stores: Readonly<Record<string, VmState>> = {
  "that is lost": { binding: nobody, migration: null, givenBack: [] },
  "of before the move": { binding: changeState(nobody, "bound", { owner: A, epoch: epoch(1), evidence: "started" }, NOW), migration: null, givenBack: [] },
};

function back(script: Script, host: HostId, side: MigrationRecord["side"], state: MigrationRecord["state"], migration = MOVE): readonly string[] {
  script.go({ type: "host-back", host, life: LIFE, records: [{ migration, side, state, peer: A }], reported: side === "source" ? "released" : "incoming" }, { restart: true });
  return script.effects;
}

for (const [name, state] of Object.entries(stores)) {
  await t.test(`a store ${name}: of a move that it knows nothing of, neither copy of the guest is destroyed`, (t) => {
    const script = new Script();
    script.state = state;
    const before = script.where;
    const source = state.binding.owner === null ? A : B;
    const target = source === A ? B : A;
    for (const again of ["once", "and again"]) {
      t.same(back(script, source, "source", "released"), ["rule-broken"], `the source is not revoked, ${again}`);
      t.same(back(script, target, "target", "prepared"), ["rule-broken"], `what is prepared is not aborted, ${again}`);
    }
    t.same(back(script, source, "source", "active"), [`abort ${source}`], "before RELEASE the guest runs on, whoever gives up");
    t.same(script.where, before, "nothing is believed");
    t.end();
  });
}

await t.test("what it knows, it settles as ever", (t) => {
  const script = new Script();
  script.go({ type: "migrate", host: B, actor: "operator", sourceConnected: true, targetConnected: true, targetLife: LIFE, sourceCanLead: false });
  script.go({ type: "said", host: B, body: { kind: "targetEnded", migration: MOVE, result: "target-died", reason: "target-gone", detail: "", undelivered: null } }, { restart: true });
  t.same(script.where, ["none", null, 1]);
  t.same(back(script, A, "source", "released"), ["revoke host-a"], "its epoch was reserved here, if never committed");
  t.same(back(script, B, "target", "prepared"), ["abort host-b"]);
  t.end();
});
