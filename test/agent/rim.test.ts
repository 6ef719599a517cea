import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { createServer, type Server } from "node:http";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import t from "tap";
import { WebSocketServer } from "ws";
import { z } from "zod";
import { backoff } from "../../agent/backoff.js";
import { readAgentConfig, relayEndpoint } from "../../agent/config.js";
import { HeartbeatRelay } from "../../agent/heartbeat-relay.js";
import { Outbox } from "../../agent/outbox.js";
import { nextRestartCounter, Records } from "../../agent/records.js";
import { Session } from "../../agent/session.js";
import { readToken } from "../../agent/token.js";
import { Turns } from "../../agent/turns.js";
import { portName } from "../../agent/vm-network.js";
import { ipv4, mac } from "../../model/address.js";
import { CareofError } from "../../model/errors.js";
import { epoch, hostId, millis, vmId } from "../../model/ids.js";
import { LinuxVmPorts } from "../../net/vm-port-linux.js";
import { Channel, decision } from "../../proto/channel.js";
import type { Body } from "../../proto/messages.js";
import { FakeClock } from "../model/fake-clock.js";
import { clock, log, until, VM } from "./rig.js";

const directory = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });

void t.test("records: whole or not at all", (t) => {
  const place = join(directory, "records");
  const schema = z.strictObject({ n: z.number() });
  const records = new Records(place, schema);
  records.write("web1", { n: 1 });
  records.write("web1", { n: 2 });
  t.same([...records.all()], [["web1", { n: 2 }]]);
  writeFileSync(join(place, "web1.json.new"), '{"n":');
  t.same([...new Records(place, schema).all()], [["web1", { n: 2 }]], "a crash before the rename leaves the old one");
  t.same(readdirSync(place), ["web1.json"], "and its rest is removed");
  for (const name of ["../x", "", "A", "x/y"]) t.throws(() => { records.write(name, { n: 1 }); }, { code: "record-write-failed" }, name);
  t.throws(() => { new Records(place, z.strictObject({ n: z.number(), big: z.string() })).write("big", { n: 1, big: "x".repeat(300_000) }); }, { code: "record-write-failed" });
  writeFileSync(join(place, "web2.json"), "{torn");
  t.throws(() => records.all(), { code: "record-unreadable", message: /web2/ }, "what cannot be read is not guessed");
  rmSync(join(place, "web2.json"));
  records.remove("web1");
  records.remove("web1");
  t.equal(records.all().size, 0);
  // A directory in the place of the file: every write fails, whoever runs this.
  mkdirSync(join(place, "web3.json.new"));
  t.throws(() => { records.write("web3", { n: 1 }); }, { code: "record-write-failed", retryable: true });
  t.equal(nextRestartCounter(join(directory, "state"), 1e12), 1);
  t.equal(nextRestartCounter(join(directory, "state"), 1e12), 2);
  writeFileSync(join(directory, "state", "restart-counter"), "rubbish");
  t.equal(nextRestartCounter(join(directory, "state"), 1e12), 1e9 + 1, "lost: it still grows");
  t.end();
});

void t.test("small things", async (t) => {
  const pauses = backoff({ firstMs: 100, maxMs: 500, factor: 2 }, () => 1);
  t.same([1, 2, 3, 4, 5].map(() => pauses.next().value), [100, 200, 400, 500, 500]);
  t.equal(backoff({ firstMs: 100, maxMs: 500, factor: 2 }, () => 0).next().value, 50, "jittered");
  t.equal(portName(vmId("web1")), "co-web1");
  t.match(portName(vmId("a-very-long-name-of-a-vm")), /^co_[0-9a-f]{12}$/);
  const turns = new Turns<string>();
  const order: number[] = [];
  const first = turns.take("x", async () => { await new Promise((resolve) => { setTimeout(resolve, 20); }); order.push(1); throw new Error("fails"); });
  const second = turns.take("x", () => { order.push(2); return Promise.resolve(); });
  await turns.take("y", () => { order.push(0); return Promise.resolve(); });
  await t.rejects(first);
  await second;
  t.same(order, [0, 1, 2]);
});

void t.test("configuration", (t) => {
  const file = join(directory, "agent.yaml");
  const good = "name: host-a\ncareOf: 192.0.2.11\nuplink: eth0\nhomeAgent: ws://192.0.2.1:4434/v1/agent\ntokenFile: /t\nstateDir: /s\nrunDir: /r\n";
  writeFileSync(file, good);
  const config = readAgentConfig(file);
  t.same([config.gateway.address, config.gateway.mac, config.heartbeats.port, config.qemu.accel, config.tunnel.dataPlane], ["169.254.1.1", "02:ca:0f:00:00:01", 4434, "auto", "auto"]);
  t.same(relayEndpoint(config), { address: "192.0.2.11", port: 0 });
  writeFileSync(file, `${good}relay: {listen: 0.0.0.0:4500}\n`);
  t.same(relayEndpoint(readAgentConfig(file)), { address: "192.0.2.11", port: 4500 });
  for (const [bad, wanted] of [["colour: red\n", /agent.yaml:8:1: unknown key "colour"/], ["qemu: {accel: fast}\n", /8:.*accel/], ["heartbeats: {port: 0}\n", /port/], ["log: 5\n", /log/], ["ports: {table: main}\n", /table/]] as const) {
    writeFileSync(file, good + bad);
    t.throws(() => readAgentConfig(file), { code: "config-invalid", message: wanted }, bad);
  }
  writeFileSync(file, good.replace("ws://", "http://"));
  t.throws(() => readAgentConfig(file), { code: "config-invalid" });
  const gateway = { address: ipv4("169.254.1.1"), mac: mac("02:ca:0f:00:00:01") };
  for (const table of [0, 253, 255, 32_766, 0x7fff_ffff]) {
    writeFileSync(file, `${good}ports: {table: ${String(table)}}\n`);
    t.throws(() => readAgentConfig(file), { code: "config-invalid", message: /agent.yaml:8:.*ports.table/ }, `table ${String(table)}`);
    t.throws(() => new LinuxVmPorts({ uplink: "eth0", gateway, table, pathMtu: 1500 }), { code: "malformed-table" }, "the kernel's side says the same");
  }
  for (const table of [1, 252, 256, 32_765]) {
    writeFileSync(file, `${good}ports: {table: ${String(table)}}\n`);
    t.equal(readAgentConfig(file).ports.table, table);
  }
  t.end();
});

void t.test("a token that others can read is used, and warned of", (t) => {
  const lines: string[] = [];
  const heard = pino({ level: "warn" }, { write: (line: string) => { lines.push(line); } });
  const file = join(directory, "token");
  writeFileSync(file, "secret-secret-secret-1\nwhat follows does not count\n");
  for (const [mode, warned] of [[0o600, false], [0o400, false], [0o640, true], [0o644, true], [0o602, true]] as const) {
    chmodSync(file, mode);
    lines.length = 0;
    t.equal(readToken(file, heard), "secret-secret-secret-1");
    t.equal(lines.some((line) => line.includes(file) && line.includes(mode.toString(8))), warned, mode.toString(8));
    t.notOk(lines.some((line) => line.includes("secret-secret")), "it is not in the log");
  }
  writeFileSync(file, "short\n");
  t.throws(() => readToken(file, heard), { code: "token-unreadable", message: /not a token/ });
  t.throws(() => readToken(join(directory, "none"), heard), { code: "token-unreadable", message: /none/ });
  t.end();
});

void t.test("SIGHUP does not end an agent, not even one that is starting", async (t) => {
  // The hypervisor that it asks for its version says nothing until it is told to.
  const asked = join(directory, "asked");
  const go = join(directory, "go");
  const binary = join(directory, "hypervisor");
  writeFileSync(binary, `#!/bin/sh\n: > ${asked}\nwhile [ ! -e ${go} ]; do sleep 0.05; done\nexit 1\n`, { mode: 0o700 });
  const file = join(directory, "starting.yaml");
  writeFileSync(file, [
    "name: host-a", "careOf: 192.0.2.11", "uplink: eth0", "homeAgent: ws://192.0.2.1:4434/v1/agent", `tokenFile: ${join(directory, "token")}`, `stateDir: ${join(directory, "s")}`,
    `runDir: ${join(directory, "r")}`, "tunnel: {pathMtu: 1500}", `qemu: {binary: ${binary}}`, "",
  ].join("\n"));
  const main = new URL("../../agent/main.js", import.meta.url).href;
  const agent = spawn(process.execPath, ["--input-type=module", "--eval", `import { runAgent } from ${JSON.stringify(main)}; await runAgent(${JSON.stringify(file)}, new AbortController().signal);`], { stdio: ["ignore", "pipe", "ignore"] });
  t.teardown(() => { agent.kill("SIGKILL"); });
  let said = "";
  agent.stdout.setEncoding("utf8").on("data", (text: string) => { said += text; });
  const over = new Promise<string>((resolve) => { agent.once("exit", (code, signal) => { resolve(signal ?? `exit ${String(code)}`); }); });
  await until("it has asked", () => existsSync(asked));
  agent.kill("SIGHUP");
  await until("it says so", () => said.includes("SIGHUP"));
  writeFileSync(go, "");
  t.equal(await over, "exit 1", "it goes on, and finds that this is no hypervisor");
});

void t.test("outbox: said until decided, in order per topic", async (t) => {
  const fake = new FakeClock();
  const asked: string[] = [];
  let outcome: () => Promise<Body<"decision">> = () => Promise.reject(new CareofError("timed-out", "", { retryable: true }));
  const asker = { registered: false, ask: (body: Body) => { asked.push(body.kind === "leadReady" ? body.migration : body.kind); return outcome(); } };
  const outbox = new Outbox(asker, fake, log);
  const answered: string[] = [];
  const put = (key: string, topic: string, migration: string): void => {
    outbox.put({ key, topic, body: { kind: "leadReady", migration: migration as never }, answered: ({ reason }) => { answered.push(`${key}:${reason}`); } });
  };
  put("1", "a", "a1");
  put("2", "a", "a2");
  put("3", "b", "b1");
  t.same(asked, [], "not before the registration");
  asker.registered = true;
  outbox.flush();
  await fake.advanceAsync(0);
  t.same(asked, ["a1", "b1"], "topics do not wait for each other");
  outcome = () => Promise.resolve(decision("store-unavailable"));
  await fake.advanceAsync(1000);
  t.same(answered, [], "a store that fails is asked again");
  outcome = () => Promise.resolve(decision("stale-epoch"));
  await fake.advanceAsync(1000);
  t.same(answered.sort(), ["1:stale-epoch", "2:stale-epoch", "3:stale-epoch"], "a refusal is an answer");
  t.equal(outbox.size, 0);
  put("4", "a", "old");
  outcome = () => new Promise(() => undefined);
  put("5", "c", "c1");
  put("5", "c", "c2");
  t.equal(outbox.size, 2, "the newer one replaces the older");
});

void t.test("session: registers, keeps alive, comes back, says everything anew", async (t) => {
  let mode: "good" | "mute" | "refuse" | "deny" = "good";
  const registers: Body<"register">[] = [];
  const channels = new Set<{ readonly channel: Channel; readonly end: () => void }>();
  const http: Server = createServer();
  const server = new WebSocketServer({ noServer: true });
  http.on("upgrade", (request, socket, head) => {
    if (mode === "refuse" || request.headers.authorization !== "Bearer host-a:secret-secret-1") {
      socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}');
      return;
    }
    server.handleUpgrade(request, socket, head, (peer) => {
      const channel: Channel = new Channel({
        clock, transport: { send: (bytes) => { peer.send(bytes); }, close: () => { peer.close(); } },
        onRequest: (body, answer) => {
          if (mode === "mute") return;
          if (body.kind === "register") {
            registers.push(body);
            answer({
              kind: "registered", decision: { reason: mode === "deny" ? "foreign-care-of" : "accepted", epoch: epoch(0), detail: "" }, restartCounter: 1, tunnelAddresses: [ipv4("192.0.2.1")],
              keepAliveMs: millis(20), lifetimeMs: millis(3000), bindings: [], heartbeatPort: 4434,
            });
          } else if (body.kind === "keepAlive") answer(body);
          else answer(decision("accepted"));
        },
      });
      channels.add({ channel, end: () => { peer.terminate(); } });
      peer.on("message", (data) => { if (Buffer.isBuffer(data)) channel.receive(data); });
    });
  });
  await new Promise<void>((resolve) => { http.listen(0, "127.0.0.1", resolve); });
  const address = http.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  const seen = { registered: 0, lost: [] as string[], requests: [] as string[] };
  const session: Session = new Session({
    url: `ws://127.0.0.1:${String(port)}/v1/agent`, host: hostId("host-a"), token: "secret-secret-1", clock, log, random: Math.random, schedule: { firstMs: 5, maxMs: 20, factor: 2 },
    register: () => Promise.resolve({
      kind: "register", version: 1, host: hostId("host-a"), instance: "i", restartCounter: 1, locators: [], software: "", migrations: [], vms: [], known: [],
      capabilities: { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "", accelerator: "tcg", dataPlane: "fake", memoryBytes: 1, localDisks: true, adopts: true, postcopy: true },
    }),
    registered: () => { seen.registered++; },
    lost: (error) => { seen.lost.push(error.code); },
    request: (body, answer) => { seen.requests.push(body.kind); answer(decision("accepted")); },
  });
  t.teardown(() => { session.close(); http.closeAllConnections(); http.close(); });
  await t.rejects(session.ask({ kind: "keepAlive", at: millis(1) }, "decision"), { code: "not-connected" });
  session.start();
  await until("registered", () => seen.registered === 1);
  t.ok(session.registered);
  const [first] = channels;
  t.equal((await first?.channel.ask({ kind: "abort", migration: "web1@2" as never, vm: VM, reason: "timed-out" }, "decision", millis(500)))?.reason, "accepted");
  first?.end();
  await until("registered again", () => seen.registered === 2);
  t.equal(registers.length, 2, "everything anew");
  mode = "mute";
  await until("keep-alives missed", () => seen.lost.length === 2);
  t.equal(seen.lost.at(-1), "timed-out", "silence is noticed by both sides");
  mode = "deny";
  await until("refused", () => registers.length >= 3, 15_000);
  t.notOk(session.registered, "a refused registration is no registration");
  mode = "refuse";
  const before = registers.length;
  await new Promise((resolve) => { setTimeout(resolve, 100); });
  t.ok(registers.length <= before + 1);
  mode = "good";
  await until("back", () => session.registered);
  t.same(seen.requests, ["abort"]);
});

void t.test("heartbeats pass only from a VM of this host, and not too many", async (t) => {
  const said: Body<"relayedHeartbeat">[] = [];
  const owners = new Map([[ipv4("127.0.0.1"), VM]]);
  const relay = new HeartbeatRelay({ address: ipv4("127.0.0.1"), port: 0, perVmPerSecond: 5, clock, log, owners: () => owners, say: (body) => { said.push(body); } });
  t.teardown(() => { relay.close(); });
  relay.start();
  await until("bound", () => relay.port !== 0);
  const guest = createSocket("udp4");
  t.teardown(() => { guest.close(); });
  const answers: string[] = [];
  guest.on("message", (message) => { answers.push(message.toString()); });
  await new Promise<void>((resolve) => { guest.bind(0, "127.0.0.1", resolve); });
  const send = (text: string): void => { guest.send(text, relay.port, "127.0.0.1"); };
  send("one");
  await until("relayed", () => said.length === 1);
  t.equal(Buffer.from(said[0]?.envelope ?? []).toString(), "one");
  t.equal(said[0]?.port, guest.address().port);
  relay.answer({ kind: "heartbeatAnswer", envelope: Buffer.from("back"), port: guest.address().port, address: ipv4("127.0.0.1"), vm: VM });
  await until("answered", () => answers.length === 1);
  send("x".repeat(600));
  await until("too big", () => relay.dropped["too-big"] === 1);
  for (let i = 0; i < 20; i++) send("flood");
  await until("too many", () => relay.dropped["too-many"] >= 10);
  t.ok(said.length <= 7);
  owners.clear();
  send("stranger");
  await until("stranger", () => relay.dropped["not-listed"] === 1);
  relay.answer({ kind: "heartbeatAnswer", envelope: Buffer.from("late"), port: guest.address().port, address: ipv4("127.0.0.1"), vm: VM });
  await new Promise((resolve) => { setTimeout(resolve, 20); });
  t.equal(answers.length, 1, "a VM that has left gets no answer from here");
});
