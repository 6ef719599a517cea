import t from "tap";
import { setTimeout as sleep } from "node:timers/promises";
import { join } from "node:path";
import { CareofError } from "../../model/errors.js";
import { command, inNamespace, must } from "../../deploy/lab/command.js";
import { Part } from "../../deploy/lab/part.js";
import { labPlan, newRunId, PLAN } from "../../deploy/lab/plan.js";
import { abandonedRuns, labDirectory, leftOver, processesOf, register, removeRun } from "../../deploy/lab/registry.js";
import { makeTopology } from "../../deploy/lab/topology.js";
import { Traffic, trafficProgram, type TrafficSample } from "../../deploy/lab/traffic.js";

/** The correspondent and, as the guest, the other end of its link. */
const GUEST = PLAN.homeAgent.home;
/** For what comes at once on a quiet machine. */
const COMES_MS = 30_000;

async function until(is: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = performance.now() + COMES_MS; !(await is()) && performance.now() < end;) await sleep(20);
}

if (process.getuid?.() !== 0) {
  t.pass("the lab", { skip: "network namespaces need root" });
} else {
  const run = newRunId();
  const plan = labPlan(run);
  register(run);
  t.teardown(async () => removeRun(run));
  await makeTopology(plan);
  const program = await trafficProgram();
  const serve = (name: string): Part => new Part(name, inNamespace(plan.namespaces.h, [program, "serve"]), join(labDirectory(run), `${name}.log`));
  const correspondent = (pps: number, bulkMbit: number, onSample: (sample: TrafficSample) => void = () => undefined): Traffic =>
    new Traffic({ program, namespace: plan.namespaces.c, to: GUEST, pps, bulkMbit, waitS: COMES_MS / 1000, onSample });

  for (const pps of [1000, 10_000]) {
    await t.test(`${String(pps)} packets/s both ways: nothing is lost on a quiet link, all is counted`, async (t) => {
      const guest = serve(`quiet-${String(pps)}`);
      const samples: TrafficSample[] = [];
      const traffic = correspondent(pps, 20, (sample) => samples.push(sample));
      await traffic.ready(2 * COMES_MS);
      await sleep(300);
      await traffic.mark("from");
      await sleep(1500);
      await traffic.mark("to");
      await sleep(300);
      const window = await traffic.window("from", "to");
      // Half of it where a busy machine gives it no more, and never more than it, but for what it catches up with.
      const due = (pps * (window.t1 - window.t0)) / 1000;
      for (const [way, number] of [["down", window.sentDown], ["up", window.sentUp]] as const) t.ok(number > due / 2 && number < due * 1.05 + pps / 10, `sends ${way} at its rate`, { found: [number, due] });
      t.match(window, { receivedDown: window.sentDown, receivedUp: window.sentUp, duplicatedDown: 0, duplicatedUp: 0, reorderedDown: 0, reorderedUp: 0 });
      t.ok(window.bulkUpBytes > 1e6 && window.bulkDownBytes > 1e6, "bulk flows at about 20 Mbit/s both ways", { found: [window.bulkUpBytes, window.bulkDownBytes] });
      t.ok((window.serviceGapUpMs ?? 9999) < 1000 && (window.serviceGapDownMs ?? 9999) < 1000, "no silence", { found: window });
      const idle = await traffic.idle();
      const last = samples.at(-1);
      t.ok(last !== undefined && last.counter > 10 && idle.counter > last.counter - 10, "one counter in the guest for both sessions");
      const end = await traffic.quit();
      t.equal(end.survived, true);
      t.match(await guest.stop("SIGTERM"), { code: 0, signal: null }, "the guest's end stops cleanly");
    });
  }

  await t.test("a cut link shows as loss, service gap and stall, and the sessions live on", async (t) => {
    const guest = serve("cut");
    const traffic = correspondent(1000, 20);
    await traffic.ready(2 * COMES_MS);
    await traffic.mark("from");
    await sleep(300);
    // To an Ethernet address that nobody has, so that neither sender notices: a link that is down would refuse the packets.
    const neighbour = async (words: string): Promise<string> => must(inNamespace(plan.namespaces.c, ["ip", "neigh", ...words.split(" ")]));
    await neighbour(`replace ${GUEST} lladdr 02:00:00:00:00:99 dev home0 nud permanent`);
    const cut = performance.now();
    await sleep(400);
    const cutMs = performance.now() - cut;
    await neighbour(`del ${GUEST} dev home0`);
    await sleep(1500);
    await traffic.mark("to");
    await sleep(300);
    const window = await traffic.window("from", "to");
    for (const [name, value] of Object.entries({ down: window.serviceGapDownMs, tcp: window.tcpStallDownMs })) {
      t.ok(value !== null && value > cutMs - 20 && value < cutMs + 1500, `${name}: a gap of about ${cutMs.toFixed(0)} ms`, { found: value });
    }
    t.ok(window.receivedDown < window.sentDown - 100, "the packets of the cut are missing");
    t.ok((window.serviceGapUpMs ?? 9999) < cutMs - 20 && window.receivedUp === window.sentUp, "the other direction is measured apart", { found: window });
    t.strictSame(traffic.broken, [], "no session broke");
    t.equal((await traffic.quit()).survived, true);
    await guest.stop("SIGTERM");
  });

  await t.test("a guest that starts anew is not taken for the same", async (t) => {
    const first = serve("first");
    const traffic = correspondent(100, 0);
    await traffic.ready(2 * COMES_MS);
    await sleep(200);
    await first.stop("SIGKILL");
    const second = serve("second");
    await until(() => traffic.broken.length >= 2);
    t.match(traffic.broken.map((line) => line.session).sort(), ["idle", "request"]);
    t.equal((await traffic.quit()).survived, false);
    await second.stop("SIGTERM");
  });

  await t.test("wrong use and a guest that is not there are clear errors", async (t) => {
    for (const words of [[], ["fly"], ["run"], ["run", "--to", "nowhere"], ["run", "--to", GUEST, "--pps-up", "20001"], ["serve", "--port", "0"], ["serve", "--port"]]) {
      const result = await command([program, ...words]);
      t.match(result, { code: 2, stderr: /^usage:/ }, `traffic ${words.join(" ")}`);
    }
    const nobody = new Traffic({ program, namespace: plan.namespaces.c, to: GUEST, pps: 10, bulkMbit: 0, waitS: 0 });
    await t.rejects(nobody.ready(COMES_MS), { code: "traffic-ended", message: /does not answer on port 7001/ });
    const guest = serve("marks");
    const traffic = correspondent(10, 0);
    await traffic.ready(2 * COMES_MS);
    await t.rejects(traffic.window("a", "b"), { code: "traffic-refused" });
    await traffic.quit();
    await guest.stop("SIGTERM");
  });

  await t.test("the guest's end refuses what is no request, and closes", async (t) => {
    const guest = serve("refuse");
    await until(async () => (await command(inNamespace(plan.namespaces.c, ["bash", "-c", `exec 3<>/dev/tcp/${GUEST}/7001`]))).code === 0);
    for (const request of ["fly 1", "start 1 20001 5", "start 1 10 0", "x".repeat(400)]) {
      const result = await command(inNamespace(plan.namespaces.c, ["bash", "-c", `exec 3<>/dev/tcp/${GUEST}/7001; echo '${request}' >&3; timeout 3 cat <&3; echo "ended $?"`]));
      // A reset is the answer to a line too long: it was not read to its end.
      t.match(result.stdout, /ended [01]\n/, request.slice(0, 20));
    }
    t.ok(guest.running);
    await guest.stop("SIGTERM");
  });

  await t.test("a run whose owner is alive is nobody else's to clean; removal leaves nothing", async (t) => {
    t.notOk(abandonedRuns().includes(run));
    t.throws(() => { register(run); }, new CareofError("lab-taken", `there is a lab named ${run}, or ${run} is no name for one`));
    const sleeper = new Part("sleeper", inNamespace(plan.namespaces.b, ["sleep", "100"]), join(labDirectory(run), "sleeper.log"));
    await until(() => processesOf(run).length > 0);
    t.strictSame(processesOf(run), [sleeper.pid]);
    t.strictSame(await removeRun(run), []);
    t.strictSame(leftOver(run), []);
    t.match((await sleeper.ended).signal, "SIGTERM");
  });
}
