import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { RelayListener } from "../../agent/migration/relay-listener.js";
import { openSourceRelay } from "../../agent/migration/relay-source.js";
import { openTargetRelay } from "../../agent/migration/relay-target.js";
import { SystemClock } from "../../model/clock.js";
import { CareofError } from "../../model/errors.js";
import { epoch, migrationId, vmId } from "../../model/ids.js";

const clock = new SystemClock({ keepAlive: true });

void t.test("the target's hypervisor is connected when there is something for it: with multifd QEMU would wait for that, and could not serve its disks", async (test) => {
  const directory = mkdtempSync(join(tmpdir(), "careof-relay-"));
  const socket = join(directory, "incoming");
  const heard: Buffer[] = [];
  let connections = 0;
  const hypervisor = createServer((connection) => {
    connections++;
    connection.on("data", (data: Buffer) => { heard.push(data); });
    connection.on("error", () => connection.destroy());
  });
  await new Promise<void>((resolve) => { hypervisor.listen(socket, resolve); });
  const common = { migration: migrationId(vmId("web1"), epoch(7)), secret: randomBytes(32), clock };
  const listener = new RelayListener({ address: "127.0.0.1", port: 0, onIntruder: (detail) => { test.fail(detail); } });
  const target = await openTargetRelay({ ...common, listener, channels: 2, socket });
  const source = await openSourceRelay({ ...common, address: "127.0.0.1", port: target.port, socket: join(directory, "outgoing"), diskSocket: join(directory, "disks") });
  test.teardown(() => {
    for (const relay of [source, target]) relay.cut(new CareofError("shutting-down", "the test is over"));
    hypervisor.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const from = connect({ path: source.socket });
  from.on("error", () => from.destroy());
  await target.connected;
  await new Promise((resolve) => setTimeout(resolve, 50));
  test.equal(connections, 0);
  const arrives = async (text: string): Promise<void> => {
    from.write(text);
    while (!Buffer.concat(heard).toString().endsWith(text)) await new Promise((resolve) => setTimeout(resolve, 2));
  };
  await arrives("first");
  await arrives("second");
  test.equal(connections, 1);
});
