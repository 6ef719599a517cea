import { createCipheriv, randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t, { type Test } from "tap";
import { WayTarget } from "../../../agent/migration/way-target.js";
import { SystemClock } from "../../../model/clock.js";
import { millis } from "../../../model/ids.js";
import { descriptorOfSocket } from "../../../net/socket-descriptor.js";
import { socketPair } from "../../net/socket-pair.js";

const KEY = Buffer.alloc(16, 9);
const SILENCE = millis(300);

/** As proto/README.md has it. */
function record(number: number, plain: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(plain.length + 16);
  const nonce = Buffer.alloc(12);
  nonce.writeBigUInt64BE(BigInt(number), 4);
  const cipher = createCipheriv("aes-128-gcm", KEY, nonce);
  cipher.setAAD(length);
  return Buffer.concat([length, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

async function target(test: Test): Promise<{ readonly way: WayTarget; readonly source: Socket; readonly out: Buffer[]; readonly broken: string[] }> {
  const [source, comes] = await socketPair(test);
  const [hypervisor, reads] = await socketPair(test);
  const broken: string[] = [];
  const out: Buffer[] = [];
  reads.on("data", (part: Buffer) => { out.push(part); }).resume();
  const way = new WayTarget({ clock: new SystemClock(), seal: { kind: "open", key: KEY }, silenceMs: SILENCE, onBroken: (cause) => { broken.push(cause.message); } });
  test.teardown(() => { way.close(); });
  way.arrived(descriptorOfSocket(comes));
  way.to(hypervisor);
  return { way, source, out, broken };
}

void t.test("records as they are written down, and behind so many of their bytes", async (test) => {
  const { way, source, out, broken } = await target(test);
  const behind: string[] = [];
  way.behind(11, () => { behind.push("all"); });
  source.write(record(0, Buffer.from("first")));
  await sleep(30);
  test.same(behind, []);
  source.write(record(1, Buffer.from("second")));
  while (behind.length === 0) await sleep(2);
  while (Buffer.concat(out).length < 11) await sleep(2);
  test.equal(String(Buffer.concat(out)), "firstsecond");
  test.same(broken, []);
});

void t.test("a record that comes slowly is no silence; nothing is", async (test) => {
  const { way, source, broken } = await target(test);
  let behind = false;
  way.behind(200_000, () => { behind = true; });
  const bytes = record(0, randomBytes(200_000));
  const steps = 10;
  for (let step = 0; step < steps; step++) {
    source.write(bytes.subarray((bytes.length * step) / steps, (bytes.length * (step + 1)) / steps));
    await sleep((3 * SILENCE) / steps);
  }
  test.same([behind, broken], [true, []]);
  way.behind(200_001, () => undefined);
  await sleep(3 * SILENCE);
  test.match(broken, [/nothing of the stream came for 300 ms/]);
});

void t.test("an end in the midst of a record is none", async (test) => {
  const { source, broken } = await target(test);
  source.end(record(0, Buffer.from("cut off")).subarray(0, 20));
  while (broken.length === 0) await sleep(2);
  test.match(broken, [/the stream broke: what came was not sealed as the next record/]);
});
