import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

/*
 * Traffic from inside a namespace, one process each:
 *   udp-send ADDRESS PORT COUNT PER_MS [BYTES,...]   numbered datagrams of 100 bytes, or of these sizes by turns, then {"sent"}
 *   udp-receive PORT                     {"ready"}, and on SIGTERM {"received","overflowed","duplicated","reordered","bytes":{SIZE:COUNT}}
 *   tcp-serve PORT                       {"ready"}; whoever connects sends BYTES and gets as many back
 *   tcp-exchange ADDRESS PORT BYTES      sends a pattern, reads it back: {"sent","received","same","seconds"}
 *   peer PORT                            {"ready"}; serves as tcp-serve, sends datagrams back, and for each line "ADDRESS BYTES SIZE,..." does tcp-exchange with another peer, then a
 *                                        datagram of each size: the same answer with {"datagrams":[SIZES THAT CAME BACK]}
 */

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function udpSend(address: string, port: number, count: number, perMillisecond: number, sizes: readonly number[]): Promise<void> {
  const socket = createSocket("udp4");
  await new Promise<void>((resolve) => { socket.bind(0, resolve); });
  const begun = performance.now();
  for (let sent = 0; sent < count;) {
    // After a stall it falls behind instead of catching up in one burst, which no queue on the way would hold.
    const due = Math.min(count, sent + 10 * perMillisecond, Math.ceil((performance.now() - begun) * perMillisecond));
    for (; sent < due; sent++) {
      const datagram = Buffer.alloc(sizes[sent % sizes.length] ?? 0);
      datagram.writeUInt32BE(sent);
      await new Promise<void>((resolve, reject) => { socket.send(datagram, port, address, (failure) => { if (failure === null) resolve(); else reject(failure); }); });
    }
    await sleep(1);
  }
  socket.close();
  say({ sent: count });
}

/** Datagrams that this namespace's socket had no room for: they have arrived all the same. */
function overflowed(port: number): number {
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const lines = readFileSync("/proc/net/udp", "utf8").split("\n").map((line) => line.trim().split(/\s+/));
  return Number(lines.find((fields) => fields[1]?.endsWith(local) === true)?.at(-1) ?? 0);
}

function udpReceive(port: number): void {
  const seen = new Set<number>();
  let duplicated = 0;
  let reordered = 0;
  let highest = -1;
  const bytes: Record<number, number> = {};
  const socket = createSocket({ type: "udp4", recvBufferSize: 4 * 1024 * 1024 });
  socket.on("message", (datagram) => {
    const number = datagram.readUInt32BE(0);
    if (seen.has(number)) duplicated++;
    else if (number < highest) reordered++;
    seen.add(number);
    bytes[datagram.length] = (bytes[datagram.length] ?? 0) + 1;
    highest = Math.max(highest, number);
  });
  socket.bind(port, () => { say({ ready: true }); });
  process.on("SIGTERM", () => {
    say({ received: seen.size, overflowed: overflowed(port), duplicated, reordered, bytes });
    process.exit(0);
  });
}

/** Of a datagram's way there and back, fragments and all, on a slow machine. */
const DATAGRAM_LIMIT_MS = 5_000;

function tcpServe(port: number): void {
  createServer((socket) => { socket.pipe(socket); }).listen(port, () => { say({ ready: true }); });
}

async function peer(port: number): Promise<void> {
  const datagrams = createSocket("udp4");
  datagrams.on("message", (datagram, { address, port: from }) => { datagrams.send(datagram, from, address); });
  datagrams.bind(port, () => { tcpServe(port); });
  for await (const line of createInterface({ input: process.stdin })) {
    const [address = "", bytes, sizes = ""] = line.split(" ");
    const exchanged = await tcpExchange(address, port, Number(bytes));
    say({ ...exchanged, datagrams: await udpExchange(address, port, sizes.split(",").filter((size) => size !== "").map(Number)) });
  }
}

/** Which of these sizes come back as they were sent, one after another. */
async function udpExchange(address: string, port: number, sizes: readonly number[]): Promise<number[]> {
  if (sizes.length === 0) return [];
  const socket = createSocket({ type: "udp4", recvBufferSize: 1024 * 1024 });
  const came: number[] = [];
  for (const size of sizes) {
    const datagram = Buffer.from(Array.from({ length: size }, (_, index) => (index * 13) & 0xff));
    const back = new Promise<boolean>((resolve) => {
      socket.once("message", (message) => { resolve(message.equals(datagram)); });
      socket.send(datagram, port, address);
    });
    if (await Promise.race([back, sleep(DATAGRAM_LIMIT_MS, false)])) came.push(size);
    socket.removeAllListeners("message");
  }
  socket.close();
  return came;
}

async function tcpExchange(address: string, port: number, bytes: number): Promise<object> {
  const begun = performance.now();
  const socket = connect({ host: address, port });
  const sentHash = createHash("sha256");
  const receivedHash = createHash("sha256");
  let received = 0;
  socket.on("data", (data) => {
    received += data.length;
    receivedHash.update(data);
    if (received >= bytes) socket.end();
  });
  const block = Buffer.from(Array.from({ length: 65536 }, (_, index) => (index * 7) & 0xff));
  for (let sent = 0; sent < bytes; sent += block.length) {
    block.writeUInt32BE(sent / block.length);
    sentHash.update(block);
    if (!socket.write(Buffer.from(block))) await new Promise<void>((resolve) => { socket.once("drain", resolve); });
  }
  await new Promise<void>((resolve) => { socket.once("close", () => { resolve(); }); });
  return { sent: bytes, received, same: sentHash.digest("hex") === receivedHash.digest("hex"), seconds: (performance.now() - begun) / 1000 };
}

const [mode = "", ...given] = process.argv.slice(2);
const number = (index: number): number => Number(given[index]);
switch (mode) {
  case "udp-send":
    await udpSend(given[0] ?? "", number(1), number(2), number(3), (given[4] ?? "100").split(",").map(Number));
    break;
  case "udp-receive":
    udpReceive(number(0));
    break;
  case "tcp-serve":
    tcpServe(number(0));
    break;
  case "tcp-exchange":
    say(await tcpExchange(given[0] ?? "", number(1), number(2)));
    break;
  case "peer":
    await peer(number(0));
    break;
  default:
    throw new Error(`unknown mode "${mode}"`);
}
