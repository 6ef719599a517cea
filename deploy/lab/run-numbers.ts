import { createSocket } from "node:dgram";
import { createInterface } from "node:readline";
import { SystemClock } from "../../model/clock.js";

/*
 * Numbered packets one way, for a VM that never sends anything.
 *   run-numbers send ADDRESS PORT PPS     sends until the end of input, then prints {"sent": N}
 *   run-numbers receive ADDRESS PORT      prints a report for each line of input, and begins anew
 */

const [, , role, address = "", portText = "", ppsText = "1000"] = process.argv;
const port = Number(portText);
const clock = new SystemClock();

function send(): void {
  const socket = createSocket("udp4");
  const period = 1000 / Number(ppsText);
  const pause = new Int32Array(new SharedArrayBuffer(4));
  let number = 0;
  let ended = false;
  process.stdin.resume().on("end", () => { ended = true; });
  socket.on("error", (error) => { throw error; });
  socket.connect(port, address, () => {
    let due = clock.monotonic() as number;
    const next = (): void => {
      const packet = Buffer.alloc(16);
      packet.writeBigUInt64BE(BigInt(++number), 0);
      socket.send(packet);
      due += period;
      const left = due - clock.monotonic();
      if (left > 0) Atomics.wait(pause, 0, 0, left);
      if (!ended) setImmediate(next);
      else socket.close(() => { process.stdout.write(`${JSON.stringify({ sent: number })}\n`); });
    };
    next();
  });
}

function receive(): void {
  let state = fresh();
  const socket = createSocket({ type: "udp4", recvBufferSize: 8 * 1024 * 1024 });
  socket.on("message", (packet) => {
    const now = clock.monotonic();
    const number = Number(packet.readBigUInt64BE(0));
    if (state.seen.has(number)) state.duplicated++;
    else state.seen.add(number);
    if (number < state.highest) state.reordered++;
    state.highest = Math.max(state.highest, number);
    if (state.last !== 0 && now - state.last > state.longest) state.longest = now - state.last;
    state.last = now;
  });
  socket.bind(port, address, () => { process.stdout.write('{"ready":true}\n'); });
  createInterface({ input: process.stdin }).on("line", () => {
    const numbers = [...state.seen].sort((one, other) => one - other);
    const lost = numbers.length === 0 ? 0 : (numbers.at(-1) ?? 0) - (numbers[0] ?? 0) + 1 - numbers.length;
    process.stdout.write(`${JSON.stringify({ received: numbers.length, lost, duplicated: state.duplicated, reordered: state.reordered, longestMs: state.longest })}\n`);
    state = { ...fresh(), last: state.last, highest: state.highest };
  }).on("close", () => { socket.close(); });
}

function fresh(): { seen: Set<number>; highest: number; duplicated: number; reordered: number; longest: number; last: number } {
  return { seen: new Set(), highest: 0, duplicated: 0, reordered: 0, longest: 0, last: 0 };
}

if (role === "send") send();
else receive();
