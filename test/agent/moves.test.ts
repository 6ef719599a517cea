import t from "tap";
import { FakeHypervisor } from "../../agent/hypervisor/qemu-fake.js";
import { addressBytes, ipv4 } from "../../model/address.js";
import { epoch, millis, migrationId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { kinds } from "./hypervisor/machines-here.js";
import { begin, clock, HOME, Host, settle, sleep, until, VM } from "./rig.js";

for (const kind of kinds) {
  const real = kind.name === "qemu";
  const started = async (test: Pick<typeof t, "teardown">): Promise<{ readonly a: Host; readonly b: Host }> => {
    const a = new Host("host-a", "192.0.2.11", kind.make);
    const b = new Host("host-b", "192.0.2.12", kind.make);
    test.teardown(async () => { await a.end(); await b.end(); });
    await a.boot();
    await b.boot();
    await a.guests.start(kind.spec, epoch(1));
    return { a, b };
  };
  const both = async (a: Host, b: Host): Promise<string> => `${(await a.runs()) ? "a" : ""}${(await b.runs()) ? "b" : ""}`;

  void t.test(`moves with ${kind.name}`, { skip: kind.skip }, async (t) => {
    await t.test("there and back, with a lead", async (t) => {
      const { a, b } = await started(t);
      // A home agent that re-points: its marker reaches the source through the (fake) tunnel.
      a.onTold = (body) => {
        if (body.kind === "leadReady") setTimeout(() => { a.migrations.lead({ kind: "lead", migration: body.migration, token: 77 }); }, 5);
      };
      const { canLead } = await a.driver.facts();
      await begin(a, b, 2, { lead: canLead, holdMaxMs: millis(150) });
      const switchOver = await a.heard("switchOver");
      const running = await b.heard("running", ({ final }) => final);
      const released = await a.heard("released");
      t.equal(switchOver.hold, canLead ? "hold-expired" : "no-gate", "no marker came: the hold is bounded");
      t.equal(await both(a, b), "b");
      t.ok(running.pauseMs !== null && running.pauseMs > 0 && running.pauseMs < 10_000, `pause ${String(running.pauseMs)} ms ± ${String(running.pauseErrorMs)}`);
      const atSource = (running.resumedAtSource ?? 0) - switchOver.stopAt;
      t.ok(Math.abs(atSource - (running.pauseMs ?? 0)) <= 2 * running.pauseErrorMs + 1, `by the source's clock ${String(atSource)} ms`);
      t.ok(released.bytes > 0);
      t.equal(a.entries(), "forward 192.0.2.12");
      t.equal(b.entries(), "deliver");
      t.equal(b.ports.frames.length, 1, "primed once");
      await settle(a, b, 2);
      t.same([a.entries(), a.ports.list().length, a.migrations.records().length], ["", 0, 0], "nothing is left at the source");
      t.equal(a.guests.get(VM), undefined);
      t.equal(b.guests.get(VM)?.epoch, 2);
      await begin(b, a, 3);
      await a.heard("running", ({ final, epoch: under }) => final && under === 3);
      await settle(b, a, 3);
      t.equal(await both(a, b), "a");
      t.equal(b.migrations.records().length, 0);
    });

    await t.test("the home agent's word overtakes the relay's: when the guest stopped is said by the source alone, and the pause can be told", async (t) => {
      const { a, b } = await started(t);
      a.onTold = (body) => {
        if (body.kind === "released") b.migrations.binding({ vm: VM, epoch: epoch(2), state: "bound", owner: b.name, forwardTo: null, forwardMs: millis(0), spec: kind.spec, peers: [] });
      };
      await begin(a, b, 2);
      const running = await b.heard("running", ({ final }) => final);
      const { stopAt } = await a.heard("switchOver");
      t.ok(running.resumedAtSource !== null && running.resumedAtSource > stopAt && running.resumedAtSource < stopAt + 10_000, `it stood for ${String((running.resumedAtSource ?? 0) - stopAt)} ms`);
      await settle(a, b, 2);
    });

    await t.test("what the guest had not taken when it stopped goes after it, and only then", async (t) => {
      const { a, b } = await started(t);
      const packet = (to: string): Buffer => Buffer.concat([Buffer.from([0x45, 0, 0, 24]), Buffer.alloc(12), addressBytes(ipv4(to)), Buffer.alloc(4)]);
      const port = a.ports.list()[0]?.name ?? "";
      a.ports.waiting.set(port, [packet(HOME), packet("224.0.0.251"), packet(HOME)]);
      const prepare = await begin(a, b, 2, real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) });
      t.equal(a.migrations.abort({ kind: "abort", migration: prepare.migration, vm: VM, reason: "cancelled-by-operator" }), "accepted");
      await a.heard("sourceEnded");
      await until("settled", () => !b.migrations.has(VM) && !a.migrations.has(VM));
      t.equal(a.ports.waiting.get(port)?.length, 3, "a guest that stays takes it itself");
      await begin(a, b, 3);
      await b.heard("running", ({ final, epoch: under }) => final && under === 3);
      await until("passed on", () => a.passedOn.length === 2);
      t.same(a.passedOn, [0, 1].map(() => ({ packet: packet(HOME), to: "192.0.2.12" })), "to the new host, and what is for nobody there is not sent");
      await settle(a, b, 3);
    });

    await t.test("refusals change nothing", async (t) => {
      const { a, b } = await started(t);
      const prepare = await begin(a, b, 2, real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) });
      await t.rejects(b.migrations.prepare({ ...prepare, migration: migrationId(VM, epoch(3)), epoch: epoch(3) }), { code: "already-moving" });
      await t.rejects(a.migrations.prepare({ ...prepare, migration: migrationId(VM, epoch(3)), epoch: epoch(3) }), { code: "already-moving" });
      t.equal(a.migrations.abort({ kind: "abort", migration: prepare.migration, vm: VM, reason: "cancelled-by-operator" }), "accepted");
      const end = await a.heard("sourceEnded");
      t.same([end.result, end.reason], ["source-runs", "cancelled-by-operator"]);
      await b.heard("targetEnded");
      t.ok(await a.runs());
      t.equal(a.entries(), "deliver");
      await until("settled", () => !b.migrations.has(VM) && !a.migrations.has(VM));
      await t.rejects(b.migrations.prepare(prepare), { code: "stale-epoch" }, "a late repetition meets the tombstone");
      t.equal(a.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(9)), vm: VM, reason: "timed-out" }), "not-moving");
      t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(9), forwardTo: null, graceMs: millis(1) }), "not-permitted", "a guest that runs is not revoked");
    });

    await t.test("back again while the old host still forwards: nothing of the first move touches the guest of the second", async (t) => {
      const grace = millis(real ? 16_000 : 4000);
      for (const back of ["moved", "started"] as const) {
        const { a, b } = await started(t);
        await begin(a, b, 2);
        await b.heard("running", ({ final }) => final);
        const asked = clock.monotonic();
        t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(2), forwardTo: ipInIp(b.careOf), graceMs: grace }), "accepted");
        if (back === "moved") {
          await begin(b, a, 3);
          await a.heard("running", ({ final, epoch: under }) => final && under === 3);
          t.same(a.ports.dropped, [], "its port is still there");
          t.equal(b.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(3), forwardTo: ipInIp(a.careOf), graceMs: grace }), "accepted");
        } else {
          await until("buried", () => a.guests.get(VM) === undefined);
          await b.guests.stop(VM, { force: true, patience: millis(0) });
          await a.guests.start(kind.spec, epoch(3));
        }
        t.ok(clock.monotonic() - asked < grace, "within the grace time");
        await sleep(asked + grace + 200 - clock.monotonic());
        t.equal(await both(a, b), "a", `${back}: it runs on`);
        t.same([a.entries(), a.ports.list().length, a.deaths], ["deliver", 1, []]);
      }
    });

    await t.test("what comes late, or before its time", async (t) => {
      const { a, b } = await started(t);
      const prepare = await begin(a, b, 2);
      await b.heard("running", ({ final }) => final);
      t.equal(a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(1), forwardTo: null, graceMs: millis(1) }), "stale-epoch", "a revoke of what was before this move");
      await settle(a, b, 2);
      // Read in one go: a Migrate, and the Abort that takes it back.
      const late = migrationId(VM, epoch(3));
      const migrating = b.migrations.migrate({
        kind: "migrate", migration: late, vm: VM, epoch: epoch(3), target: a.name, targetLocator: ipInIp(a.careOf), relayAddress: "127.0.0.1", relayPort: 9, secret: prepare.secret, parameters: prepare.parameters,
      });
      t.equal(b.migrations.abort({ kind: "abort", migration: late, vm: VM, reason: "timed-out" }), "not-moving");
      await t.rejects(migrating, { code: "stale-epoch" });
      t.equal(await both(a, b), "b");
      t.equal(b.migrations.records().length, 0);
    });

    await t.test("a disk that fails at the start, and at an arrival", async (t) => {
      const { a, b } = await started(t);
      await a.guests.stop(VM, { force: true, patience: millis(0) });
      // The directory of the records goes while the guest is started: the second record, which names the process, cannot be written.
      const starting = a.guests.start(kind.spec, epoch(2));
      const refused = t.rejects(starting, { code: "start-failed" });
      a.loseRecords();
      await refused;
      t.equal(await both(a, b), "");
      t.equal(a.guests.get(VM), undefined);
      t.equal(a.ports.list().length, 0);
      a.findRecords();
      await a.guests.start(kind.spec, epoch(3));

      await begin(a, b, 4);
      b.loseRecords();
      await b.heard("running", ({ final }) => final);
      t.equal(await both(a, b), "b", "it is known, whatever the disk says");
      t.ok(b.migrations.has(VM), "the migration's record speaks for it");
      b.findRecords();
      await until("it is on disk", () => !b.migrations.has(VM));
      await settle(a, b, 4);
      await b.crash();
      await b.boot();
      t.equal(await both(a, b), "b", "found again by its own record");

      await begin(b, a, 5);
      a.loseRecords();
      await a.heard("running", ({ final, epoch: under }) => final && under === 5);
      await a.driver.cleanUp([]);
      await until("its end is noticed all the same", () => a.deaths.length === 1);
      a.findRecords();
    });

    // Each word that the home agent answers is followed by a write; none of them may end the agent, and each is made up for.
    await t.test("a disk that is full when the home agent answers: the source runs on, then its guest dies", async (t) => {
      const { a, b } = await started(t);
      const giveUp = async (number: number): Promise<void> => {
        a.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(number)), vm: VM, reason: "cancelled-by-operator" });
        await a.heard("sourceEnded", ({ migration }) => migration === migrationId(VM, epoch(number)));
      };
      const slow = real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) };
      a.epochAtHome = epoch(3);
      await begin(a, b, 2, slow);
      a.loseRecords();
      await giveUp(2);
      await sleep(1200);
      t.ok(a.migrations.has(VM), "the migration's record stays, since it alone knows of the new epoch");
      t.equal(await both(a, b), "a");
      a.findRecords();
      await until("made up for", () => !a.migrations.has(VM));
      t.same([a.recorded()?.state, a.recorded()?.epoch], ["owner", 3]);

      await until("the target is done", () => !b.migrations.has(VM));
      await begin(a, b, 4, slow);
      a.loseRecords("migrations");
      await giveUp(4);
      await sleep(1200);
      t.ok(a.migrations.has(VM), "its record cannot be removed");
      a.findRecords("migrations");
      await until("removed", () => !a.migrations.has(VM));

      await until("the target is done again", () => !b.migrations.has(VM));
      await begin(a, b, 5, slow);
      await a.guests.get(VM)?.guest?.destroy();
      a.loseRecords();
      const gone = await a.heard("sourceEnded", ({ migration }) => migration === migrationId(VM, epoch(5)));
      t.equal(gone.result, "source-gone");
      await sleep(1200);
      a.findRecords();
      await until("buried", () => !a.migrations.has(VM) && a.recorded()?.state === "ended");
      t.same([a.ports.list().length, a.entries()], [0, ""]);
    });

    await t.test("a disk that is full when the home agent answers the target, and at the source's end", async (t) => {
      const { a, b } = await started(t);
      const prepare = await begin(a, b, 2, real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) });
      a.migrations.abort({ kind: "abort", migration: prepare.migration, vm: VM, reason: "cancelled-by-operator" });
      b.onTold = (body) => { if (body.kind === "targetEnded") b.loseRecords(); };
      await b.heard("targetEnded");
      await sleep(1200);
      t.ok(b.migrations.has(VM), "no tombstone yet");
      b.onTold = () => undefined;
      b.findRecords();
      await until("the tombstone", () => !b.migrations.has(VM) && b.recorded()?.state === "ended");

      await until("the source is done", () => !a.migrations.has(VM));
      await begin(a, b, 3);
      await b.heard("running", ({ final, epoch: under }) => final && under === 3);
      a.loseRecords();
      a.migrations.revoke({ kind: "revoke", vm: VM, epoch: epoch(3), forwardTo: ipInIp(b.careOf), graceMs: millis(50) });
      await sleep(300);
      a.findRecords();
      await until("dismantled", () => !a.migrations.has(VM) && a.recorded()?.state === "ended");
      t.same([a.ports.list().length, a.entries(), await both(a, b)], [0, "", "b"]);
    });

    await t.test("given up after the lead: what waited at the target is lost, and counted", async (t) => {
      const { a, b } = await started(t);
      for (const [number, packets] of [[2, 7], [4, 0]] as const) {
        const { migration } = await begin(a, b, number, real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) });
        b.comes(packets);
        a.migrations.abort({ kind: "abort", migration, vm: VM, reason: "cancelled-by-operator" });
        const ended = await b.heard("targetEnded", (body) => body.migration === migration);
        t.same([ended.result, ended.undelivered], ["target-never-ran", packets], "of this move alone");
        await until("settled", () => !b.migrations.has(VM) && !a.migrations.has(VM));
      }
      const { migration } = await begin(a, b, 6, real ? { maxBandwidth: 1_000_000 } : { lead: true, holdMaxMs: millis(3000) });
      b.comes(3);
      await b.crash();
      await b.boot();
      t.equal((await b.heard("targetEnded", (body) => body.migration === migration)).undelivered, null, "what nobody knows any more is not called nothing");
    });

    const cuts: readonly (readonly [string, (a: Host, b: Host) => Promise<void>, string])[] = [
      ["the target's process dies while copying", async (_a, b) => { await killGuest(b); }, "a"],
      ["the source's process dies while copying", async (a) => { await a.guests.get(VM)?.guest?.destroy(); }, ""],
      ["the target's agent dies while copying", async (_a, b) => { await b.crash(); await b.boot(); }, "a"],
      ["the source's agent dies while copying", async (a) => { await a.crash(); await a.boot(); }, "a"],
    ];
    for (const [name, cut, runner] of cuts) {
      await t.test(name, async (t) => {
        const { a, b } = await started(t);
        await begin(a, b, 2, real ? { maxBandwidth: 4_000_000 } : { lead: true, holdMaxMs: millis(3000) });
        await sleep(30);
        await cut(a, b);
        const end = await a.heard("sourceEnded");
        t.equal(end.result, runner === "a" ? "source-runs" : "source-gone");
        await b.heard("targetEnded", ({ result }) => result === "target-never-ran");
        t.equal(await both(a, b), runner);
        await until("settled", () => !b.migrations.has(VM) && !a.migrations.has(VM));
      });
    }

    await t.test("the source's agent dies between STOP and RELEASE", async (t) => {
      const { a, b } = await started(t);
      let crashed = Promise.resolve();
      a.onTold = (body) => { if (body.kind === "switchOver") crashed = a.crash(); };
      await begin(a, b, 2);
      await a.heard("switchOver");
      await crashed;
      a.onTold = () => undefined;
      await a.boot();
      await a.heard("sourceEnded", ({ result }) => result === "source-runs");
      t.equal(await both(a, b), "a");
      b.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(2)), vm: VM, reason: "source-gone" });
      await b.heard("targetEnded", ({ result }) => result === "target-never-ran");
      t.equal(await both(a, b), "a");
    });

    await t.test("the relay dies with RELEASE on disk: the home agent passes it on, or the target is buried and the source comes back", async (t) => {
      for (const granted of [true, false]) {
        const { a, b } = await started(t);
        // RELEASE never leaves by the relay: the agent dies right after the disk has it.
        a.reachable = false;
        await begin(a, b, 2);
        await until("released", () => a.migrations.records()[0]?.state === "released");
        await a.crash();
        a.reachable = true;
        await a.boot();
        await a.heard("released");
        t.notOk(await a.runs(), "the source stands");
        if (b.migrations.records()[0]?.state === "prepared") {
          if (granted) b.migrations.binding({ vm: VM, epoch: epoch(2), state: "bound", owner: b.name, forwardTo: null, forwardMs: millis(0), spec: kind.spec, peers: [] });
          else b.migrations.abort({ kind: "abort", migration: migrationId(VM, epoch(2)), vm: VM, reason: "source-gone" });
        }
        const neverRan = b.told.some((body) => body.kind === "targetEnded") || (!granted && !(await b.runs()) && b.migrations.records()[0]?.state !== "continued");
        if (neverRan) {
          await b.heard("targetEnded", ({ result }) => result === "target-never-ran");
          t.equal(a.migrations.resume({ kind: "resume", migration: migrationId(VM, epoch(2)), vm: VM, epoch: epoch(3), evidence: "target-never-ran" }), "accepted");
          await a.heard("sourceEnded", ({ result }) => result === "source-runs");
          t.equal(await both(a, b), "a");
          await until("the new epoch", () => a.guests.get(VM)?.epoch === 3);
        } else {
          await b.heard("running");
          t.equal(await both(a, b), "b");
          await settle(a, b, 2);
          t.equal(a.guests.get(VM), undefined);
        }
      }
    });

    await t.test("the target's agent dies right after its word is on disk", async (t) => {
      const { a, b } = await started(t);
      b.reachable = false;
      await begin(a, b, 2);
      await until("continued", () => b.migrations.records()[0]?.state === "continued");
      await b.crash();
      b.reachable = true;
      await b.boot();
      await b.heard("running", ({ final }) => final);
      t.equal(await both(a, b), "b");
      await settle(a, b, 2);
      t.equal(await both(a, b), "b");
      t.equal(b.migrations.records().length, 0);
    });

    await t.test("both agents die at once, at any moment", async (t) => {
      for (const delay of real ? [40, 250, 500] : [1, 5, 9, 12, 14, 16, 20]) {
        const { a, b } = await started(t);
        await begin(a, b, 2, real ? { maxBandwidth: 200_000_000 } : {});
        await sleep(delay);
        await a.crash();
        await b.crash();
        await a.boot();
        await b.boot();
        await until("an end", async () => {
          const neverRan = b.told.some((body) => body.kind === "targetEnded");
          if (neverRan && a.migrations.records()[0]?.state === "released") {
            a.migrations.resume({ kind: "resume", migration: migrationId(VM, epoch(2)), vm: VM, epoch: epoch(3), evidence: "target-never-ran" });
          }
          return (await both(a, b)) !== "";
        });
        await sleep(50);
        t.match(await both(a, b), /^(a|b)$/, `${String(delay)} ms: ${a.told.map((body) => body.kind).join()} / ${b.told.map((body) => body.kind).join()}`);
      }
    });
  });

  async function killGuest(host: Host): Promise<void> {
    const identities = [...host.migrations.records()].length;
    if (identities !== 1) throw new Error("no target here");
    // As SIGKILL from outside: the agent's own driver is not asked.
    await host.driver.cleanUp([]);
  }
}

void t.test("a guest that dies by itself is noticed", async (t) => {
  const fake = new FakeHypervisor({ clock });
  const host = new Host("host-a", "192.0.2.11", () => fake);
  t.teardown(() => host.end());
  await host.boot();
  const spec = kinds[0]?.spec;
  if (spec === undefined) throw new Error("no fake");
  await host.guests.start(spec, epoch(1));
  t.equal(fake.running().length, 1);
  await t.rejects(host.guests.start(spec, epoch(2)), { code: "already-running" });
  host.loseRecords();
  fake.kill(1);
  await until("noticed", () => host.deaths.length === 1);
  await sleep(50);
  host.findRecords();
  await until("its tombstone is written when the disk takes it", () => host.recorded()?.state === "ended");
});
