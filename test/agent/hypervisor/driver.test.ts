import { execFile } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";
import type { Guest, GuestSpec } from "../../../agent/hypervisor/driver.js";
import { chooseAccelerator } from "../../../agent/hypervisor/accelerator.js";
import { identifyProcess, isAlive } from "../../../agent/hypervisor/process.js";
import { millis } from "../../../model/ids.js";
import { clock, recorder, sleep, until } from "../rig.js";
import { kinds } from "./machines-here.js";
import { Drivers, specOf, stopForPostcopy } from "./two-drivers.js";

const drivers = new Drivers(t);
// The drivers' own timers and processes do not keep a process alive, and a test may wait for nothing else.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => { clearInterval(alive); });

for (const kind of kinds) {
  void t.test(`driver contract: ${kind.name}`, { skip: kind.skip }, async (t) => {
    const { vm, qemu } = specOf(kind, 1);

    await t.test("starts, is found again, ends", async (t) => {
      const driver = drivers.make(kind);
      const facts = await driver.facts();
      t.ok(facts.canHoldTarget && facts.ownsStream);
      const guest = await driver.start(specOf(kind, 1));
      t.equal(await guest.status(), "running");
      await t.rejects(guest.continueSwitchover(), { code: /qmp-/ });
      await guest.cancelSend();
      await guest.release();
      const again = await driver.adopt(vm, guest.identity);
      t.equal(await again?.status(), "running");
      const { words, take } = recorder();
      again?.subscribe(take);
      await again?.destroy();
      await again?.destroy();
      t.same(words, ["gone"], "once");
      t.equal(await again?.status(), "gone");
      await t.rejects(Promise.resolve(again?.progress()), { code: "guest-gone" });
      t.equal(await driver.adopt(vm, guest.identity), null);
    });

    await t.test("given back it runs on, is nobody's, and can be taken over", async (t) => {
      const driver = drivers.make(kind);
      const guest = await driver.start(specOf(kind, 1));
      const { pid } = guest.identity;
      const { control } = await driver.giveBack(guest, () => undefined);
      await driver.cleanUp([]);
      const again = await driver.takeOver(vm, control, qemu.memoryBytes);
      t.equal(await again.status(), "running");
      t.equal(again.identity.pid, pid, "the same process");
      await driver.cleanUp([]);
      t.equal(await again.status(), "running", "it is not this driver's to clean up");
      await t.rejects(driver.takeOver(vm, `${control}x`, qemu.memoryBytes), { code: "adopt-failed" });
      const { words, take } = recorder();
      again.subscribe(take);
      await again.destroy();
      t.same(words, ["gone"]);
    });

    await t.test("a guest moves, and the target waits for the word", async (t) => {
      const { source, target, heard, stream } = await drivers.pair(kind);
      t.equal(await target.status(), "incoming");
      await target.receive(stream);
      // As long as may be asked for; QEMU's own limit is 2000 s.
      await source.send({ ...stream, downtimeLimitMs: millis(3_600_000) });
      await until("pre-switchover", () => heard.source.words.includes("pre-switchover"));
      t.equal(await source.status(), "halted");
      t.ok(heard.source.words.indexOf("stopped") < heard.source.words.indexOf("pre-switchover"), "STOP comes first");
      await sleep(30);
      t.equal(await source.status(), "halted", "and waits");
      await source.continueSwitchover();
      await until("completed", () => heard.source.words.includes("completed") && heard.target.words.includes("completed"));
      t.equal(await source.status(), "handed-over");
      t.equal(await target.status(), "loaded");
      t.notOk(heard.target.words.includes("resumed"));
      await target.resume();
      await until("resumed", () => heard.target.words.includes("resumed"));
      await target.resume();
      t.equal(await target.status(), "running");
      t.equal(await source.status(), "handed-over");
      t.same(heard.source.words.filter((word) => word !== "setup" && word !== "active" && word !== "stopped" && word !== "pass"), ["pre-switchover", "device", "completed"]);

      // With a proof that the other never ran, a guest that was handed over may run again.
      await target.destroy();
      await source.resume();
      t.equal(await source.status(), "running");
      await source.destroy();
    });

    await t.test("a guest moves over three connections, told to stop whatever is left", async (t) => {
      const { source, target, heard, stream } = await drivers.pair(kind);
      const many = { ...stream, channels: 2, autoConverge: true };
      await target.receive(many);
      await source.send(many);
      await source.forceSwitchover();
      await until("pre-switchover", () => heard.source.words.includes("pre-switchover"));
      await source.continueSwitchover();
      await until("completed", () => heard.source.words.includes("completed"));
      await until("loaded", async () => (await target.status()) === "loaded");
      await target.resume();
      t.equal(await target.status(), "running");
      await source.destroy();
      await target.destroy();
    });

    await t.test("halted by a word, it moves all the same, and stays halted when the copy fails", async (t) => {
      const { source, target, heard, stream } = await drivers.pair(kind);
      await target.receive(stream);
      await source.send({ ...stream, maxBandwidth: 4_000_000 });
      await source.halt();
      await source.halt();
      t.ok(heard.source.words.includes("stopped"));
      await source.cancelSend();
      await until("given up", () => heard.source.words.some((word) => word === "cancelled" || word === "failed"));
      t.equal(await source.status(), "halted");
      await source.resume();
      t.equal(await source.status(), "running");
      await target.destroy();

      const next = await drivers.pair(kind);
      await next.target.receive(next.stream);
      await next.source.send(next.stream);
      await next.source.halt();
      await until("pre-switchover", () => next.heard.source.words.includes("pre-switchover"));
      await next.source.continueSwitchover();
      await until("loaded", async () => (await next.target.status()) === "loaded");
      await until("completed", () => next.heard.source.words.includes("completed"));
      await next.target.resume();
      t.equal(await next.target.status(), "running");
      t.equal(await next.source.status(), "handed-over");
      for (const guest of [source, next.source, next.target]) await guest.destroy();
    });

    await t.test("postcopy: it runs at the target before its memory is there, and then has all", async (t) => {
      const pair = await drivers.pair(kind);
      const { source, target, heard } = pair;
      await stopForPostcopy(pair, 1_500_000);
      t.ok(heard.source.words.includes("stopped"));
      await source.continueSwitchover();
      await until("postcopy-active", () => heard.source.words.includes("postcopy-active"));
      await until("loaded", async () => (await target.status()) === "loaded");
      t.not(await source.status(), "running");
      await t.rejects(source.cancelSend(), "it cannot be given up any more");
      await t.rejects(source.resume());
      await target.resume();
      t.equal(await target.status(), "fetching");
      await until("completed", () => heard.source.words.includes("completed"), 30_000);
      await until("all has come", async () => (await target.status()) === "running");
      await source.destroy();
      await target.destroy();
    });

    await t.test("postcopy, and the source ends: the target is stranded, and can be ended", async (t) => {
      const pair = await drivers.pair(kind);
      const { source, target, heard } = pair;
      await stopForPostcopy(pair, 1_000_000);
      await source.continueSwitchover();
      await until("loaded", async () => (await target.status()) === "loaded");
      await target.resume();
      await source.destroy();
      await until("stranded", () => heard.target.words.includes("postcopy-paused"));
      await target.destroy();
      t.equal(heard.target.words.at(-1), "gone");
    });

    await t.test("cancelled, the source runs on and the target ends", async (t) => {
      const { source, target, heard, stream } = await drivers.pair(kind);
      await target.receive(stream);
      await source.send({ ...stream, maxBandwidth: 4_000_000 });
      await source.cancelSend();
      await until("the target ends", () => heard.target.words.at(-1) === "gone");
      await until("the source runs", async () => (await source.status()) === "running" && ["cancelled", "failed"].includes((await source.progress()).status));
      await t.rejects(source.send({ ...stream, socket: join(drivers.directory(), "nobody.sock") }).then(async () => {
        // QEMU may tell only later that nobody listens.
        await until("failed", async () => (await source.progress()).status === "failed");
        throw Object.assign(new Error("failed later"), { code: "qmp-later" });
      }), { code: /qmp-/ });
      t.equal(await source.status(), "running");
      await source.destroy();
    });

    await t.test("cleans up what nobody keeps", async (t) => {
      const driver = drivers.make(kind);
      const kept = await driver.start(specOf(kind, 1));
      const lost = await driver.start(specOf(kind, 2));
      const { words, take } = recorder();
      lost.subscribe(take);
      t.equal((await driver.cleanUp([kept.identity])).length, 1);
      await until("gone", () => words.includes("gone"));
      t.equal(await kept.status(), "running");
      t.equal((await driver.cleanUp([])).length, 1);
      t.equal(await driver.adopt(vm, kept.identity), null);
    });

    await t.test("what does not start leaves nothing", async (t) => {
      const directory = drivers.directory();
      const driver = drivers.make(kind, directory);
      const broken: GuestSpec = { ...specOf(kind, 1), qemu: { ...qemu, extraArgs: ["-fail", "now"] } };
      await t.rejects(driver.start(broken), { code: "start-failed" });
      t.same(readdirSync(directory).filter((name) => /\.(qmp|pid)$/.test(name)), []);
    });
  });
}

const real = kinds.find(({ name }) => name === "qemu");
void t.test("QEMU outlives who started it, and is never mistaken", { skip: real?.skip ?? "no QEMU" }, async (t) => {
  const directory = drivers.directory();
  const code = `
    import { QemuDriver } from "${process.cwd()}/dist/agent/hypervisor/qemu.js";
    import { SystemClock } from "${process.cwd()}/dist/model/clock.js";
    import { createLogger } from "${process.cwd()}/dist/model/log.js";
    const clock = new SystemClock({ keepAlive: true });
    const driver = new QemuDriver({ binary: "qemu-system-x86_64", accel: "tcg", probeKernel: null, directory: ${JSON.stringify(directory)}, clock, log: createLogger("t", "silent") });
    const guest = await driver.start(${JSON.stringify({ vm: "web1", epoch: 1, mac: "02:00:00:00:00:07", port: null, qemu: real?.spec.qemu })});
    process.stdout.write(JSON.stringify(guest.identity));
    process.kill(process.pid, "SIGKILL");
  `;
  const output = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", code]).catch((thrown: unknown) => thrown as { readonly stdout: string });
  const identity = JSON.parse(output.stdout) as Guest["identity"];
  t.ok(isAlive(identity), "lives on");
  const driver = real === undefined ? undefined : drivers.make(real, directory);
  const guest = await driver?.adopt(real?.spec.vm ?? ("" as never), identity);
  await until("the guest is up", () => readFileSync(identity.console, "utf8").includes("careof-guest ready"));
  t.equal(await guest?.status(), "running");
  await guest?.release();

  t.equal(await driver?.adopt(real?.spec.vm ?? ("" as never), { ...identity, startTicks: "1" }), null, "another process with its number");
  t.ok(isAlive(identity), "and that one was left alone");
  const mine = identifyProcess(process.pid);
  writeFileSync(join(directory, "web1@7.pid"), String(mine?.pid));
  await driver?.cleanUp([identity]);
  t.ok(mine !== null && isAlive(mine), "a pid file whose number went to somebody else kills nobody");
  await driver?.cleanUp([]);
  t.notOk(isAlive(identity));
});

void t.test("the accelerator is tried, not believed", { skip: real?.skip ?? "no QEMU" }, async (t) => {
  const directory = drivers.directory();
  const options = { binary: "qemu-system-x86_64", kernel: real?.spec.qemu?.kernel ?? "", directory, clock };
  t.same(await chooseAccelerator({ ...options, wish: "tcg" }), { accelerator: "tcg", reason: "configured" });
  const none = await chooseAccelerator({ ...options, wish: "auto", device: join(directory, "kvm") });
  t.equal(none.accelerator, "tcg");
  t.match(none.reason, /ENOENT/);
  await t.rejects(chooseAccelerator({ ...options, wish: "kvm", device: join(directory, "kvm") }), { code: "unsupported" });
  const started = clock.monotonic();
  const choice = await chooseAccelerator({ ...options, wish: "auto" });
  t.comment(`${choice.accelerator}: ${choice.reason}`);
  t.ok(clock.monotonic() - started < 12_000, "bounded");
  const again = clock.monotonic();
  t.equal((await chooseAccelerator({ ...options, wish: "auto" })).accelerator, choice.accelerator);
  t.ok(clock.monotonic() - again < 1000, "remembered");
});
