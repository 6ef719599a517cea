import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { connect as connectTls, createServer as createTlsServer, type TLSSocket } from "node:tls";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { RELAY_TLS } from "../../../agent/migration/relay-connection.js";
import { RELAY_VERSION } from "../../../agent/migration/relay.js";
import { RelayListener } from "../../../agent/migration/relay-listener.js";
import { openSourceRelay } from "../../../agent/migration/relay-source.js";
import { openTargetRelay } from "../../../agent/migration/relay-target.js";
import { SystemClock } from "../../../model/clock.js";
import { CareofError } from "../../../model/errors.js";
import { epoch, migrationId, millis, vmId } from "../../../model/ids.js";
import { encodeRelay, RelayParser, type RelayFrame } from "../../../proto/relay-framing.js";

const clock = new SystemClock({ keepAlive: true });
const migration = migrationId(vmId("web1"), epoch(7));
const secret = randomBytes(32);
const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });

const write = (socket: TLSSocket, frame: RelayFrame): void => { for (const part of encodeRelay(frame)) socket.write(part); };
const hello = (version: number, inClear = false): RelayFrame => ({ type: "hello", version, migration, channel: "main", way: new Uint8Array(32), inClear });

await t.test("a source of an older careof is told which version this host speaks, and the target gives up at once", async (t) => {
  const hypervisor = createServer();
  await new Promise<void>((resolve) => { hypervisor.listen(join(directory, "in"), resolve); });
  t.teardown(() => { hypervisor.close(); });
  const target = await openTargetRelay({ migration, secret, listener: new RelayListener({ address: "127.0.0.1", port: 0 }), channels: 0, socket: join(directory, "in"), clock });
  const socket = connectTls({ ...RELAY_TLS, host: "127.0.0.1", port: target.port, pskCallback: () => ({ psk: secret, identity: migration }), checkServerIdentity: () => undefined });
  const parser = new RelayParser();
  const heard: RelayFrame[] = [];
  socket.on("error", () => undefined).on("data", (chunk: Buffer) => { heard.push(...parser.push(chunk)); });
  socket.once("secureConnect", () => { write(socket, hello(1)); });
  const says = /careof of the source speaks version 1 of the relay, and this host's version 4: update the older one/;
  t.match(await target.closed, { code: "relay-failed", message: says });
  await new Promise<void>((resolve) => { socket.once("close", () => { resolve(); }); });
  t.match(heard.filter(({ type }) => type !== "ping"), [{ type: "close", detail: says }]);
});

await t.test("nothing is carried under the exchange that only older ones speak, whichever side insists on it", async (t) => {
  const old = { ...RELAY_TLS, ciphers: "DHE-PSK-AES128-GCM-SHA256" };
  const intruders: string[] = [];
  const target = await openTargetRelay({ migration, secret, listener: new RelayListener({ address: "127.0.0.1", port: 0 }), channels: 0, socket: join(directory, "in"), clock, onIntruder: (detail) => { intruders.push(detail); } });
  const socket = connectTls({ ...old, host: "127.0.0.1", port: target.port, pskCallback: () => ({ psk: secret, identity: migration }), checkServerIdentity: () => undefined });
  socket.on("error", () => undefined).resume().once("secureConnect", () => { write(socket, hello(RELAY_VERSION)); });
  await new Promise<void>((resolve) => { socket.once("close", () => { resolve(); }); });
  t.match(intruders, [/the hosts agree on DHE-PSK-AES128-GCM-SHA256 only/]);
  target.cut(new CareofError("shutting-down", "the test is over"));
  const server = createTlsServer({ ...old, dhparam: "auto", pskCallback: () => secret }, (each) => {
    each.on("error", () => undefined).once("data", () => { write(each, hello(RELAY_VERSION)); });
  });
  const port = await new Promise<number>((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const bound = server.address();
      resolve(bound !== null && typeof bound === "object" ? bound.port : 0);
    });
  });
  await t.rejects(openSourceRelay({ migration, secret, address: "127.0.0.1", port, socket: join(directory, "out"), diskSocket: join(directory, "disks"), clock, limits: { connectMs: millis(3000) } }), { code: "relay-failed", message: /the hosts agree on DHE/ });
  server.close();
});

await t.test("a target of an older careof is named as such, whatever it does", async (t) => {
  for (const [what, answer, says] of [
    ["it hangs up", (socket: TLSSocket) => { socket.destroy(); }, /hung up without its hello: is its careof older than this one \(relay version 4\)/],
    ["it hangs up in order", (socket: TLSSocket) => { socket.end(); }, /hung up without its hello: is its careof older/],
    ["it says its version", (socket: TLSSocket) => { write(socket, hello(1)); }, /careof of the target speaks version 1 of the relay/],
    ["it is of this version, and means another stream", (socket: TLSSocket) => { write(socket, hello(4, true)); }, /the target's stream is in clear, and this move's is not/],
    ["it says why", (socket: TLSSocket) => { write(socket, { type: "close", reason: "unsupported-version", detail: "version 5 here", sent: 0 }); }, /refuses: version 5 here/],
  ] as const) {
    const server = createTlsServer({ ...RELAY_TLS, dhparam: "auto", pskCallback: () => secret }, (socket) => {
      socket.on("error", () => undefined).once("data", () => { answer(socket); });
    });
    const port = await new Promise<number>((resolve) => {
      server.listen(0, "127.0.0.1", () => {
        const bound = server.address();
        resolve(bound !== null && typeof bound === "object" ? bound.port : 0);
      });
    });
    await t.rejects(openSourceRelay({ migration, secret, address: "127.0.0.1", port, socket: join(directory, "out"), diskSocket: join(directory, "disks"), clock, limits: { connectMs: millis(3000) } }), { code: "relay-failed", message: says }, what);
    server.close();
  }
});
