import { createServer, type Server, type Socket } from "node:net";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { MACHINE_TYPE, qemuArgs } from "../../../agent/hypervisor/qemu-args.js";
import { Qmp, type QmpEvent } from "../../../agent/hypervisor/qmp.js";
import { epoch, millis } from "../../../model/ids.js";
import { clock, specOf, until, VM } from "../rig.js";

const GREETING = '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}\r\n';
const directory = mkdtempSync(join(tmpdir(), "co-"));
t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
let sockets = 0;
type Tap = typeof t;

/** A socket that says `first`, then answers each line by `reply`. */
async function scripted(t: Pick<Tap, "teardown">, first: string, reply: (request: { readonly execute: string; readonly id: number }, socket: Socket) => void): Promise<string> {
  const path = join(directory, `${String(sockets++)}.sock`);
  const open = new Set<Socket>();
  const server: Server = createServer((socket) => {
    open.add(socket);
    socket.on("error", () => undefined);
    socket.write(first);
    let rest = "";
    socket.on("data", (chunk) => {
      const lines = (rest + chunk.toString()).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const request: unknown = JSON.parse(line);
        reply(request as { readonly execute: string; readonly id: number }, socket);
      }
    });
  });
  await new Promise<void>((resolve) => { server.listen(path, resolve); });
  t.teardown(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return path;
}

const say = (socket: Socket, message: unknown): void => { socket.write(`${JSON.stringify(message)}\r\n`); };
const polite = (request: { readonly execute: string; readonly id: number }, socket: Socket): void => { say(socket, { return: {}, id: request.id }); };

void t.test("greeting, capabilities, replies by id, events", async (t) => {
  const asked: string[] = [];
  const held: (() => void)[] = [];
  let happened = 0;
  const path = await scripted(t, GREETING, (request, socket) => {
    asked.push(request.execute);
    if (request.execute === "slow") held.push(() => { say(socket, { return: "slow", id: request.id }); });
    else if (request.execute === "bad") say(socket, { error: { class: "GenericError", desc: "no such thing" }, id: request.id });
    else if (request.execute === "fast") say(socket, { return: "fast", id: request.id });
    else polite(request, socket);
    if (request.execute === "event") {
      const wall = Date.now() - 100;
      happened = clock.monotonic() - 100;
      for (let pass = 1; pass < 5000; pass++) socket.write(`{"timestamp": {"seconds": 1, "microseconds": 1}, "event": "MIGRATION_PASS", "data": {"pass": ${String(pass)}}}\r\n`);
      say(socket, { timestamp: { seconds: Math.floor(wall / 1000), microseconds: (wall % 1000) * 1000 }, event: "STOP" });
    }
  });
  const qmp = await Qmp.connect(path, clock, millis(10_000));
  t.equal(qmp.version, "10.0.2");
  const slow = qmp.execute("slow", {}, millis(10_000));
  t.equal(await qmp.execute("fast", {}, millis(10_000)), "fast", "a later one overtakes");
  held[0]?.();
  t.equal(await slow, "slow");
  await t.rejects(qmp.execute("bad", {}, millis(10_000)), { code: "qmp-refused", message: /no such thing/ });
  const events: QmpEvent[] = [];
  qmp.subscribe((event) => { events.push(event); });
  await qmp.execute("event", {}, millis(10_000));
  await until("STOP", () => events.some(({ name }) => name === "STOP"));
  const at = events.find(({ name }) => name === "STOP")?.at ?? 0;
  t.ok(Math.abs(at - happened) < 60, "stamped when it happened, not when it came");
  t.ok(events.length < 100, "the flood of passes is not passed on");
  t.equal(asked[0], "qmp_capabilities");
  qmp.close();
  await t.rejects(qmp.execute("fast", {}, millis(10_000)), { code: "qmp-closed" });
  t.equal((await qmp.closed).code, "qmp-closed");
});

void t.test("time limits, late answers and too many", async (t) => {
  let answer: () => void = () => undefined;
  const path = await scripted(t, GREETING, (request, socket) => {
    if (request.execute === "mute") answer = () => { say(socket, { return: 1, id: request.id }); };
    else polite(request, socket);
  });
  const qmp = await Qmp.connect(path, clock, millis(10_000), { maxOutstanding: 2 });
  await t.rejects(qmp.execute("mute", {}, millis(20)), { code: "qmp-timeout", retryable: true });
  answer();
  t.same(await qmp.execute("ok", {}, millis(10_000)), {}, "a late answer is nobody's");
  const waiting = [qmp.execute("mute", {}, millis(500)), qmp.execute("mute", {}, millis(500))];
  await t.rejects(qmp.execute("ok", {}, millis(10_000)), { code: "qmp-too-many" });
  qmp.close();
  for (const one of waiting) await t.rejects(one, { code: "qmp-closed" });
  const silent = await scripted(t, "", polite);
  await t.rejects(Qmp.connect(silent, clock, millis(30)), { code: "qmp-timeout" });
  const deaf = await scripted(t, GREETING, () => undefined);
  await t.rejects(Qmp.connect(deaf, clock, millis(30)), { code: "qmp-timeout" });
  await t.rejects(Qmp.connect(join(directory, "nobody"), clock, millis(30)), { code: "qmp-closed" });
});

void t.test("whatever is not QMP ends the connection with its code", async (t) => {
  for (const first of ["hello\n", "{}\n", '{"QMP": 1}\n', "[]\n", '{"QMP": {"version": {"qemu": {"major": "x"}}}}\n']) {
    await t.rejects(Qmp.connect(await scripted(t, first, polite), clock, millis(500)), { code: "qmp-malformed" }, first);
  }
  await t.rejects(Qmp.connect(await scripted(t, "x".repeat(3000), polite), clock, millis(500), { maxLine: 2000 }), { code: "qmp-malformed" }, "a line without end");
  for (const rubbish of ["not json\n", "7\n", '{"return": 1, "id": "x"}\n', '{"event": 5}\n', "y".repeat(5000)]) {
    const path = await scripted(t, GREETING, (request, socket) => {
      if (request.execute === "go") socket.write(rubbish);
      else polite(request, socket);
    });
    const qmp = await Qmp.connect(path, clock, millis(500), { maxLine: 2000 });
    await t.rejects(qmp.execute("go", {}, millis(500)), { code: "qmp-malformed" }, rubbish.slice(0, 20));
  }
  const path = await scripted(t, GREETING, (request, socket) => {
    if (request.execute === "go") socket.destroy();
    else polite(request, socket);
  });
  const qmp = await Qmp.connect(path, clock, millis(500));
  await t.rejects(qmp.execute("go", {}, millis(500)), { code: "qmp-closed", retryable: true });
});

void t.test("QEMU's command line", (t) => {
  const files = { control: "/run/co/web1@1.qmp", pidFile: "/run/co/web1@1.pid", console: "/run/co/web1@1.log" };
  const spec = specOf({ kernel: "/k", initrd: "/i", append: "quiet panic=-1", disks: ["/d,1.qcow2", "/d2.img"], cpus: 2 });
  if (spec.qemu === null) throw new Error("no qemu");
  const guest = { vm: VM, epoch: epoch(1), mac: spec.mac, port: "co-web1", qemu: spec.qemu };
  t.same(qemuArgs(guest, files, { accelerator: "tcg", incoming: false }), [
    "-name", "guest=web1", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-machine", MACHINE_TYPE, "-accel", "tcg", "-m", "size=128M", "-smp", "cpus=2",
    "-chardev", "socket,id=control,path=/run/co/web1@1.qmp,server=on,wait=off", "-mon", "chardev=control,mode=control", "-pidfile", "/run/co/web1@1.pid",
    "-chardev", "file,id=console,path=/run/co/web1@1.log,append=on", "-serial", "chardev:console", "-kernel", "/k", "-initrd", "/i", "-append", "quiet panic=-1",
    "-drive", "file=/d,,1.qcow2,if=virtio,format=qcow2,id=disk0", "-drive", "file=/d2.img,if=virtio,format=raw,id=disk1",
    "-netdev", "tap,id=net0,ifname=co-web1,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:07,romfile=",
  ]);
  const incoming = qemuArgs({ ...guest, port: null }, files, { accelerator: "kvm", incoming: true });
  t.same(incoming.slice(-3), ["-S", "-incoming", "defer"]);
  t.notOk(incoming.includes("-netdev"));
  const own = qemuArgs({ ...guest, qemu: { ...spec.qemu, extraArgs: ["-machine", "pc-i440fx-10.0", "-cpu", "max"] } }, files, { accelerator: "tcg", incoming: false });
  t.equal(own.filter((word) => word === "-machine").length, 1, "a VM may name its machine");
  for (const word of ["-S", "--incoming", "-daemonize", "-no-shutdown", "-pidfile"]) {
    t.throws(() => qemuArgs({ ...guest, qemu: { ...guest.qemu, extraArgs: [word] } }, files, { accelerator: "tcg", incoming: false }), { code: "not-permitted" }, word);
  }
  t.throws(() => qemuArgs(guest, { ...files, control: `/${"x".repeat(120)}` }, { accelerator: "tcg", incoming: false }), { code: "path-too-long" });
  t.end();
});
