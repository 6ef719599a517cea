import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { RELAY_TLS } from "../../../agent/migration/relay-connection.js";
import { RelayListener } from "../../../agent/migration/relay-listener.js";
import { openSourceRelay } from "../../../agent/migration/relay-source.js";
import { openTargetRelay } from "../../../agent/migration/relay-target.js";
import { SystemClock } from "../../../model/clock.js";
import { CareofError } from "../../../model/errors.js";
import { epoch, migrationId, millis, vmId } from "../../../model/ids.js";
import { MAX_CHANNELS } from "../../../proto/messages.js";
import { until } from "../rig.js";

const clock = new SystemClock({ keepAlive: true });

void t.test("one listener for all moves of a host, on one port, told apart by the name that they authenticate by", async (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
  const port = await freePort();
  const listener = new RelayListener({ address: "127.0.0.1", port });
  const moves = ["web1", "web2", "web3"].map((vm) => ({ name: migrationId(vmId(vm), epoch(7)), secret: randomBytes(32), incoming: join(directory, `in-${vm}`), outgoing: join(directory, `out-${vm}`) }));
  const cleanUp: (() => void)[] = [];
  test.teardown(() => {
    for (const each of cleanUp) each();
    rmSync(directory, { recursive: true, force: true });
  });
  const opened = await Promise.all(moves.map(async ({ name, secret: key, incoming, outgoing }) => {
    const arrived = new Promise<Socket>((resolve) => {
      const server = createServer((socket) => { socket.on("error", () => undefined); resolve(socket); }).listen(incoming);
      cleanUp.push(() => { server.close(); });
    });
    const target = await openTargetRelay({ migration: name, secret: key, listener, channels: 0, socket: incoming, clock });
    const source = await openSourceRelay({ migration: name, secret: key, address: "127.0.0.1", port: target.port, socket: outgoing, diskSocket: `${outgoing}-disks`, clock, limits: { connectMs: millis(2000) } });
    const from = connect(outgoing).on("error", () => undefined);
    from.write(name);
    const to = await arrived;
    cleanUp.push(() => { source.cut(new CareofError("shutting-down", "over")); target.cut(new CareofError("shutting-down", "over")); from.destroy(); to.destroy(); });
    return { name, target, to };
  }));
  test.same(opened.map(({ target }) => target.port), [port, port, port]);
  for (const { name, to } of opened) test.equal(String(await new Promise((resolve) => { to.once("data", resolve); })), name, "each has its own stream");
  const [first, second] = moves;
  const dial = (identity: string, psk: Uint8Array): Promise<string> => new Promise((resolve) => {
    const socket = connectTls({ ...RELAY_TLS, host: "127.0.0.1", port, pskCallback: () => ({ psk, identity }), checkServerIdentity: () => undefined });
    socket.once("secureConnect", () => {
      test.match([socket.getCipher().name, socket.getEphemeralKeyInfo()], ["ECDHE-PSK-CHACHA20-POLY1305", { type: "ECDH", name: "X25519" }], "an exchange that a secret learned later does not undo");
      socket.destroy();
      resolve("in");
    }).once("error", () => { resolve("refused"); });
  });
  test.equal(await dial(first?.name ?? "", second?.secret ?? randomBytes(32)), "refused", "the secret of another move opens nothing");
  for (const { target } of opened) {
    test.equal(await dial(first?.name ?? "", first?.secret ?? randomBytes(32)), target === opened[0]?.target ? "in" : "refused", "nor does that of a move that is over");
    target.cut(new CareofError("shutting-down", "over"));
  }
  await test.rejects(new Promise((resolve, reject) => { connect(port, "127.0.0.1").once("connect", resolve).once("error", reject); }), { code: "ECONNREFUSED" }, "and nobody listens when nothing is expected");
  const again = await openTargetRelay({ migration: first?.name ?? migrationId(vmId("web1"), epoch(7)), secret: randomBytes(32), listener, channels: 0, socket: join(directory, "none"), clock });
  test.equal(again.port, port, "until something is, at once");
  again.cut(new CareofError("shutting-down", "over"));
});

void t.test("as many channels as a move may have, of stream and disks, may come at once", async (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
  const cleanUp: (() => void)[] = [];
  test.teardown(() => {
    for (const each of cleanUp) each();
    rmSync(directory, { recursive: true, force: true });
  });
  const came = { stream: 0, disk: 0 };
  const listen = async (path: string, kind: keyof typeof came): Promise<void> => {
    const server = createServer((socket) => { socket.on("error", () => undefined).once("data", () => { came[kind]++; }); cleanUp.push(() => { socket.destroy(); }); });
    await new Promise<void>((resolve) => { server.listen(path, resolve); });
    cleanUp.push(() => { server.close(); });
  };
  await listen(join(directory, "in"), "stream");
  await listen(join(directory, "nbd"), "disk");
  const migration = migrationId(vmId("web1"), epoch(7));
  const secret = randomBytes(32);
  const target = await openTargetRelay({ migration, secret, listener: new RelayListener({ address: "127.0.0.1", port: 0 }), channels: MAX_CHANNELS + 64, socket: join(directory, "in"), diskSocket: join(directory, "nbd"), clock });
  const source = await openSourceRelay({ migration, secret, address: "127.0.0.1", port: target.port, socket: join(directory, "out"), diskSocket: join(directory, "disks"), clock });
  cleanUp.push(() => { source.cut(new CareofError("shutting-down", "over")); target.cut(new CareofError("shutting-down", "over")); });
  let lost: string | null = null;
  source.closed.then((cause) => { lost = cause?.message ?? ""; }, () => undefined);
  const dial = (path: string): void => {
    const socket = connect(path).on("error", () => undefined);
    socket.write("x");
    cleanUp.push(() => { socket.destroy(); });
  };
  // The first is the main stream.
  for (let each = 0; each < 1 + MAX_CHANNELS; each++) dial(source.socket);
  for (let each = 0; each < 64; each++) dial(source.diskSocket);
  await until("all are there", () => came.stream === 1 + MAX_CHANNELS && came.disk === 64);
  test.equal(lost, null);
});

void t.test("many moves that come from one host at once, with all their channels, show none of their own out", async (test) => {
  const intruders: string[] = [];
  const listener = new RelayListener({ address: "127.0.0.1", port: 0, onIntruder: (detail) => intruders.push(detail) });
  const secret = randomBytes(32);
  const moves = Array.from({ length: 16 }, (_each, number) => migrationId(vmId(`web${String(number)}`), epoch(7)));
  const authenticated: Socket[] = [];
  const places = await Promise.all(moves.map((migration) => listener.expect(migration, secret, 1 + MAX_CHANNELS, (socket) => { authenticated.push(socket.on("error", () => undefined)); })));
  const port = places[0]?.port ?? 0;
  const sockets = Array.from({ length: moves.length * (1 + MAX_CHANNELS) }, () => connect(port, "127.0.0.1").on("error", () => undefined));
  test.teardown(() => {
    for (const socket of [...sockets, ...authenticated]) socket.destroy();
    for (const place of places) place.leave();
  });
  await Promise.all(sockets.map((socket) => new Promise((resolve) => { socket.once("connect", resolve); })));
  const handshake = (socket: Socket | undefined): Promise<string> => new Promise((resolve) => {
    socket?.once("close", () => { resolve("shown out"); });
    if (socket?.destroyed === true) resolve("shown out");
    connectTls({ ...RELAY_TLS, ...(socket === undefined ? {} : { socket }), pskCallback: () => ({ psk: secret, identity: moves[3] ?? "" }), checkServerIdentity: () => undefined })
      .once("secureConnect", () => { resolve("in"); }).once("error", (cause: Error) => { resolve(cause.message); });
  });
  // When the last one is in, all before it have come.
  test.equal(await handshake(sockets.at(-1)), "in");
  test.equal(await handshake(sockets[0]), "in", "the one that has waited longest is there as well");
  await until("both have been accepted", () => authenticated.length === 2);
  test.same(intruders.filter((detail) => detail.includes("gave way")), []);
});

void t.test("as many connections wait unauthenticated as the expected moves have, beside those that are anybody's", async (test) => {
  const shownOut: string[] = [];
  const listener = new RelayListener({ address: "127.0.0.1", port: 0, strangers: { perAddress: 3 }, onIntruder: (detail) => { if (detail.includes("gave way")) shownOut.push(detail); } });
  const expect = (vm: string, connections: number): ReturnType<typeof listener.expect> => listener.expect(migrationId(vmId(vm), epoch(7)), randomBytes(32), connections, () => undefined);
  const [one, other] = [await expect("web1", 1), await expect("web2", 5)];
  const sockets: Socket[] = [];
  const ended: number[] = [];
  const dial = async (): Promise<void> => {
    const number = sockets.length;
    const socket = connect(one.port, "127.0.0.1").on("error", () => undefined).on("close", () => ended.push(number));
    sockets.push(socket);
    await new Promise((resolve) => { socket.once("connect", resolve); });
  };
  test.teardown(() => {
    for (const socket of sockets) socket.destroy();
    for (const place of [one, other]) place.leave();
  });
  for (let each = 0; each < 3 + 1 + 5; each++) await dial();
  await dial();
  await until("one gives way", () => ended.length === 1);
  test.same([ended, shownOut.length], [[0], 1], "the oldest, and no more");
  other.leave();
  await dial();
  await until("the places of a move that is over are nobody's", () => ended.length === 2);
  test.equal(ended[1], 1);
});

async function freePort(): Promise<number> {
  const server = createServer();
  const port = await new Promise<number>((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const bound = server.address();
      resolve(bound !== null && typeof bound === "object" ? bound.port : 0);
    });
  });
  await new Promise((resolve) => { server.close(resolve); });
  return port;
}
