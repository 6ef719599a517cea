import t from "tap";
import { epoch, millis } from "../../model/ids.js";
import { kinds } from "./hypervisor/machines-here.js";
import { begin, Host, settle, until, VM } from "./rig.js";

/** A guest that runs at the target before its memory is there: it has all of it in the end, or none of the hosts runs it. */
for (const kind of kinds) {
  const gone = async (test: Pick<typeof t, "teardown">): Promise<{ readonly a: Host; readonly b: Host }> => {
    const a = new Host("host-a", "192.0.2.11", kind.make);
    const b = new Host("host-b", "192.0.2.12", kind.make);
    test.teardown(async () => { await a.end(); await b.end(); });
    await a.boot();
    await b.boot();
    await a.guests.start(kind.spec, epoch(1));
    await begin(a, b, 2, { postcopy: true, timeoutMs: millis(300), maxBandwidth: 4_000_000 });
    t.match(await b.heard("running"), { postcopy: true, final: false });
    return { a, b };
  };

  void t.test(`postcopy with ${kind.name}`, { skip: kind.skip }, async (t) => {
    await t.test("all comes", async (t) => {
      const { a, b } = await gone(t);
      t.match(await a.heard("released"), { postcopy: true });
      t.notOk(await a.runs());
      t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(2), forwardTo: null, graceMs: millis(1) }), "not-permitted", "its memory is still wanted");
      t.match(await b.heard("running", ({ final }) => final, 60_000), { postcopy: false });
      t.ok(await b.runs());
      await until("it has served", async () => a.migrations.reportState(VM) === "released" && !(await a.runs()));
      await until("and says so, for whoever was refused before", () => a.told.filter(({ kind }) => kind === "released").length === 2);
      await settle(a, b, 2);
      t.same([a.entries(), a.ports.list().length, a.migrations.records().length], ["", 0, 0], "nothing is left at the source");
      await b.crash();
      await b.boot();
      t.ok(await b.runs(), "and it is a guest like any other");
    });

    const losses: readonly (readonly [string, (a: Host, b: Host) => Promise<void>])[] = [
      ["the source's process dies", async (a) => { await a.guests.get(VM)?.guest?.destroy(); }],
      ["the source's agent dies", async (a) => {
        await a.heard("released");
        await a.crash();
        a.told.length = 0;
        await a.boot();
        // The home agent, started anew with it, would let a person give it back to the source.
        await a.heard("released", ({ postcopy }) => postcopy);
      }],
      ["the target's agent dies", async (_a, b) => { await b.crash(); await b.boot(); }],
    ];
    for (const [name, lose] of losses) {
      await t.test(name, async (t) => {
        const { a, b } = await gone(t);
        await lose(a, b);
        t.match(await b.heard("targetEnded", () => true, 30_000), { result: "target-died", reason: "postcopy-broken" });
        t.notOk(await b.runs());
        t.notOk(await a.runs(), "and it never comes back");
        await until("the source can be revoked", () => a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(2), forwardTo: null, graceMs: millis(1) }) === "accepted");
        await until("nothing is left", () => !a.migrations.has(VM) && !b.migrations.has(VM) && a.guests.get(VM) === undefined && b.guests.get(VM) === undefined);
        await a.guests.start(kind.spec, epoch(3));
        t.ok(await a.runs(), "it can be started again");
      });
    }
  });
}
