import t from "tap";
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Lab } from "../../deploy/lab/lab.js";
import { HOSTS, PLAN, type HostName } from "../../deploy/lab/plan.js";
import { Witness } from "../../deploy/lab/witness.js";

/**
 * Kills one part after the other in the copy phase of a migration that is made slow for it. Whatever dies: the guest never runs twice (I1), an aborted
 * migration ends at the source (I5), and it moves again afterwards (I8).
 */

const VM = PLAN.guest.name;
/** For what comes by itself in a second or some; none of it is about speed. */
const COMES_MS = 90_000;
/** 80 MB of guest take about 8 s. */
const lab = await Lab.start({ witnessed: true, homeAgent: { handover: { maxBandwidth: 10_000_000, sourceGoneMs: 6000, targetGoneMs: 2000, lostAfterMs: 3000 } } });
const witness = new Witness(lab);
t.teardown(async () => {
  witness.close();
  await lab.close();
});

await lab.startGuest("host-a");
let traffic = await lab.traffic({ pps: 500, bulkMbit: 2 });

/** Begins a migration away from where the guest is, and returns in the midst of the copy. */
async function inCopy(): Promise<{ readonly from: HostName; readonly to: HostName; readonly epoch: number; readonly end: ReturnType<Lab["careof"]> }> {
  const { host, epoch } = await lab.where();
  const from = HOSTS.find((each) => each === host);
  if (from === undefined) throw new Error(`the guest is at ${String(host)}`);
  const to = from === "host-a" ? "host-b" : "host-a";
  const end = lab.careof(["migrate", VM, to, "--output", "json"], 120_000);
  end.catch(() => undefined);
  await lab.until("the migration copies", COMES_MS, async () => {
    const { body } = await lab.http("GET", "/v1/migrations");
    return Array.isArray(body) && body.some((each: unknown) => JSON.stringify(each).includes('"phase":"copy"') && JSON.stringify(each).includes('"result":null'));
  });
  await sleep(500);
  return { from, to, epoch, end };
}

async function settled(host: HostName): Promise<void> {
  await lab.until(`the guest is bound at ${host}`, COMES_MS, async () => {
    const where = await lab.where();
    return where.state === "bound" && where.host === host;
  });
}

/** The witness hears it by another way than the home agent. */
async function runsAt(host: string | null): Promise<void> {
  await lab.until(`the guest runs at ${host ?? "no host"}, and nowhere else`, COMES_MS, () => Promise.resolve(witness.running().join() === (host ?? "")));
}

await t.test("the target's agent is killed: the guest stays", async (t) => {
  const { from, to, epoch, end } = await inCopy();
  await lab.endPart(to, "SIGKILL");
  const answer = await end;
  t.comment(answer.stdout.trim(), answer.stderr.trim().split("\n").at(-1));
  t.match(answer.code, 1);
  await settled(from);
  t.ok((await lab.where()).epoch > epoch + 1, "a new epoch: the reserved one is burnt");
  lab.startPart(to);
  await lab.connected(HOSTS, COMES_MS);
  await lab.until("nothing is left of the guest at the target", COMES_MS, () => Promise.resolve(qemuOf(to).length === 0));
  await runsAt(from);
  t.strictSame(witness.doubles(), []);
  t.strictSame(traffic.broken, []);
});

await t.test("the source's agent is killed: the guest runs on, and on one host", async (t) => {
  const { from, to, end } = await inCopy();
  await lab.endPart(from, "SIGKILL");
  await sleep(1500);
  t.strictSame(witness.doubles(), []);
  await runsAt(from);
  lab.startPart(from);
  await lab.connected(HOSTS, COMES_MS);
  const answer = await end;
  t.comment(answer.stdout.trim(), answer.stderr.trim().split("\n").at(-1));
  t.match(answer.code, 1);
  await settled(from);
  await lab.until("nothing is left of the guest at the target", COMES_MS, () => Promise.resolve(qemuOf(to).length === 0));
  t.strictSame(witness.doubles(), []);
  await runsAt(from);
  t.strictSame(traffic.broken, []);
  await traffic.idle();
});

await t.test("the target's QEMU is killed: the guest stays", async (t) => {
  const { from, to, end } = await inCopy();
  for (const pid of qemuOf(to)) process.kill(pid, "SIGKILL");
  const answer = await end;
  t.comment(answer.stdout.trim(), answer.stderr.trim().split("\n").at(-1));
  t.match(answer.code, 1);
  await settled(from);
  t.strictSame(witness.doubles(), []);
  await runsAt(from);
  t.strictSame(traffic.broken, []);
});

await t.test("the home agent is killed: the migration ends one way, and the home agent knows which", async (t) => {
  const { from, to, epoch, end } = await inCopy();
  await lab.endPart("home-agent", "SIGKILL");
  await sleep(500);
  lab.startPart("home-agent");
  await lab.connected(HOSTS, COMES_MS);
  await lab.until("it is settled", COMES_MS, async () => (await lab.where()).state === "bound");
  const where = await lab.where();
  const answer = await end;
  t.comment(JSON.stringify(where), `was ${from}, wanted ${to}`, answer.stdout.trim());
  t.equal(where.host, answer.code === 0 ? to : from, "the command outlives the home agent and says how it ended");
  t.ok(where.epoch > epoch, "the epoch went on");
  await runsAt(where.host);
  t.strictSame(witness.doubles(), []);
  t.strictSame(traffic.broken, []);
  await traffic.idle();
});

await t.test("the source's QEMU is killed: nobody runs it, everybody knows, and it can be started anew", async (t) => {
  const { from, to, end } = await inCopy();
  for (const pid of qemuOf(from)) process.kill(pid, "SIGKILL");
  const answer = await end;
  t.comment(answer.stdout.trim(), answer.stderr.trim().split("\n").at(-1));
  t.match(answer.code, 1);
  await lab.until("the binding has ended", COMES_MS, async () => {
    const { state, host } = await lab.where();
    return state === "expired" && host === null;
  });
  await lab.until("no QEMU is left", COMES_MS, () => Promise.resolve(qemuOf(from).length === 0 && qemuOf(to).length === 0));
  await runsAt(null);
  t.strictSame(witness.doubles(), []);
  traffic.kill();
  await lab.startGuest(to);
  traffic = await lab.traffic({ pps: 500, bulkMbit: 2 });
  t.match(await lab.where(), { state: "bound", host: to });
});

await t.test("after all that it moves", async (t) => {
  const { host } = await lab.where();
  const to = host === "host-a" ? "host-b" : "host-a";
  t.match(await lab.migrate(to), { result: "completed", to });
  await traffic.idle();
  t.equal((await traffic.quit()).survived, true);
  await runsAt(to);
  t.strictSame(witness.doubles(), []);
  witness.close();
  t.strictSame(await lab.close(), []);
});

/** QEMU processes in a host's namespace. */
function qemuOf(host: HostName): number[] {
  const inode = String(statSync(`/run/netns/${lab.namespace(PLAN.hosts[host].node)}`).ino);
  return readdirSync("/proc").filter((pid) => /^[0-9]+$/.test(pid)).map(Number).filter((pid) => {
    try {
      return readlinkSync(`/proc/${String(pid)}/ns/net`) === `net:[${inode}]` && readFileSync(`/proc/${String(pid)}/comm`, "utf8").startsWith("qemu-system");
    } catch {
      return false; // ended meanwhile
    }
  });
}
