import { createSocket } from "node:dgram";
import { randomBytes } from "node:crypto";
import WebSocket from "ws";
import { z } from "zod";
import { ipAddress } from "../../model/address.js";
import { hostId, keyId, millis, vmId } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { signHeartbeat } from "../../proto/heartbeat.js";
import { HeartbeatKey } from "../../proto/heartbeat-key.js";
import { decodeFrame, encodeFrame } from "../../proto/codec.js";

/**
 * A program of its own, started in a namespace of the lab: does one wrong thing to the home agent and prints what came of it as one line of JSON:
 * {"refused": HTTP status, "code"} for an upgrade, {"closed": code}, {"reason"} of a decision, or {"sent": n}.
 */
const [what = "", target = "", name = "", secret = ""] = process.argv.slice(2);
const LIMIT_MS = 5000;

function say(outcome: object): never {
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
  process.exit(0);
}

setTimeout(() => { say({ timedOut: true }); }, LIMIT_MS);

if (what === "heartbeats") sendHeartbeats();
else connectAgent();

function connectAgent(): void {
  const socket = new WebSocket(target, "careof.v1", { headers: { authorization: `Bearer ${name}:${secret}` } });
  socket.on("unexpected-response", (_request, response) => {
    let text = "";
    response.on("data", (part: Buffer) => { text += part.toString(); });
    response.on("end", () => { say({ refused: response.statusCode, body: z.unknown().parse(JSON.parse(text)) }); });
  });
  socket.on("error", (error) => { say({ failed: error.message }); });
  socket.on("close", (code) => { say({ closed: code }); });
  socket.on("message", (bytes: Buffer) => {
    const { body } = decodeFrame(bytes);
    if (body.kind === "registered") say({ reason: body.decision.reason });
    if (body.kind === "decision") say({ reason: body.reason });
  });
  socket.on("open", () => {
    if (what === "garbage") socket.send(randomBytes(200));
    else if (what === "text") socket.send("hello");
    else if (what === "huge") socket.send(Buffer.alloc(300 * 1024));
    else socket.send(registration());
  });
}

function registration(): Uint8Array {
  return encodeFrame({
    id: 1,
    inReplyTo: 0,
    body: {
      kind: "register", version: 1, host: hostId(what === "other-name" ? "host-a" : name), instance: "intruder", restartCounter: 1,
      locators: [ipInIp(ipAddress(what === "foreign-care-of" ? "10.1.0.2" : "10.3.0.2"))],
      capabilities: { ownsTap: true, ownsStream: true, canLead: false, canHoldTarget: true, qemuVersion: "10", accelerator: "none", dataPlane: "bpf", memoryBytes: 0, localDisks: true, adopts: true, postcopy: true },
      software: "intruder", vms: [], migrations: [], known: [],
    },
  });
}

/** Noise, and heartbeats that are well formed but signed with another key. */
function sendHeartbeats(): void {
  const socket = createSocket("udp4");
  const [address = "", port = ""] = target.split(":");
  const forged = signHeartbeat(
    { vm: vmId(name), bootId: randomBytes(16), sequence: 1, timeMs: millis(Date.now()), intervalMs: millis(500), nonce: null }, keyId(1), new HeartbeatKey(randomBytes(32)),
  );
  const datagrams = [randomBytes(300), Buffer.alloc(0), randomBytes(1400), forged, forged];
  let sent = 0;
  for (const datagram of datagrams) {
    socket.send(datagram, Number(port), address, () => {
      sent++;
      if (sent === datagrams.length) say({ sent });
    });
  }
}
