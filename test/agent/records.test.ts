import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { migrationFile } from "../../agent/record-shapes.js";
import { Records } from "../../agent/records.js";
import { ipAddress } from "../../model/address.js";
import { ipInIp } from "../../model/locator.js";
import { specOf, VM } from "./rig.js";

void t.test("a migration's record of before there were disks that move, or postcopy, is read", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "co-"));
  t.teardown(() => { rmSync(directory, { recursive: true, force: true }); });
  const records = new Records(directory, migrationFile);
  const old = {
    migration: `${VM}@2`, side: "source", state: "released", epoch: 2, peer: "host-b", peerLocator: ipInIp(ipAddress("10.2.0.2")), spec: specOf(), identity: null, stopAt: 1, markerAt: null, bytes: 5,
  };
  writeFileSync(join(directory, `${VM}.json`), JSON.stringify(old));
  t.match(records.all().get(VM), { ...old, madeDisks: [], movedDisks: [], fetching: false, postcopy: false });
  t.end();
});
