import t from "tap";
import { ipAddress } from "../../../model/address.js";
import { ipInIp } from "../../../model/locator.js";
import { A, C, held, rig, update, VM } from "./rig.js";

await t.test("what its port refuses: the link tells whether that has gone or is merely full", async (t) => {
  const { clock, said, make } = rig(t);
  const { vms, eyes, tunnel, ports } = await make();
  eyes.change("tap-web1", 7, true);
  vms.binding(update(A, 3), true);
  const refused = (...tags: readonly number[]): void => {
    eyes.waiting.push(...tags.map((tag) => held("refused", tag)));
    eyes.heard?.held();
  };
  const taken = (): unknown => ports.frames.map(({ frame }) => frame[14]);
  const passed = (): unknown => eyes.passed.map(({ frame, to }) => [frame[14], to]);
  const waits = [{ role: "deliver", port: "tap-web1", hold: { device: "co-hold", from: "port" } }];
  t.match(tunnel.entries(), waits);

  refused(1);
  refused(2);
  clock.advance(29);
  t.match(vms.views(), [{ phase: "here", held: 2, overflowed: 0 }], "the other end may be about to go");
  clock.advance(3);
  t.match(vms.views(), [{ phase: "here", held: 0, overflowed: 2 }], "full: dropped, and counted");
  t.match(tunnel.entries(), [{ port: "tap-web1", hold: null }], "and what it refuses now is not looked at");
  refused(3);
  t.same(taken(), [3], "one that was on its way has its second chance");
  clock.advance(900);
  t.match(tunnel.entries(), [{ hold: null }]);
  clock.advance(100);
  t.match(tunnel.entries(), waits);
  refused(4);
  clock.advance(31);
  t.match(vms.views(), [{ phase: "here", overflowed: 3 }]);
  clock.advance(1100);

  said.length = 0;
  refused(10);
  t.match(vms.views(), [{ phase: "here", held: 1 }], "its carrier is still there");
  eyes.present = eyes.present.map((link) => ({ ...link, carrier: false }));
  refused(5, 6);
  t.match(vms.views(), [{ phase: "leaving", held: 0, overflowed: 3 }], "pulled, before the kernel has said so");
  t.match(said, [{ kind: "vmReport", state: "absent", basedOn: 3 }], "once");
  t.match(tunnel.entries(), [{ role: "forward", to: "10.2.0.2" }]);
  t.same(passed(), [[10, "10.2.0.2"], [5, "10.2.0.2"], [6, "10.2.0.2"]]);
  eyes.change("tap-web1", 7, false);
  t.equal(said.length, 1, "its word is no news then");
  refused(7);
  t.same(passed(), [[10, "10.2.0.2"], [5, "10.2.0.2"], [6, "10.2.0.2"], [7, "10.2.0.2"]], "one that was on its way");

  eyes.change("tap-web1", 7, true);
  vms.drained(VM, 0);
  refused(11);
  eyes.present = eyes.present.map((link) => ({ ...link, carrier: false }));
  clock.advance(2);
  t.match(vms.views(), [{ phase: "leaving", held: 0, overflowed: 3 }], "found at the second look");
  eyes.change("tap-web1", 7, true);
  vms.drained(VM, 0);
  t.match(tunnel.entries(), waits, "back");
  eyes.present = [];
  eyes.waiting.push(held("refused", 8));
  vms.binding(update(A, 3, { peers: [{ host: C, locator: ipInIp(ipAddress("10.3.0.2")) }] }), false);
  t.match(vms.views(), [{ phase: "leaving", port: null }], "gone, and found while something else was done");
  t.same(eyes.passed.at(-1)?.frame[14], 8);
  t.equal(eyes.passed.at(-1)?.to, "10.3.0.2");
  t.same(taken(), [3], "nothing of all that went to the port");
  vms.close();
});

await t.test("what its port may have queued (congestion): with a carrier it has it, without one it was dropped", async (t) => {
  const { clock, said, make } = rig(t);
  const { vms, eyes, tunnel, ports } = await make();
  eyes.change("tap-web1", 7, true);
  vms.binding(update(A, 3), true);
  const heard = (...frames: readonly (readonly ["doubtful" | "refused", number])[]): void => {
    eyes.waiting.push(...frames.map(([came, tag]) => held(came, tag)));
    eyes.heard?.held();
  };
  const waits = [{ role: "deliver", port: "tap-web1", hold: { device: "co-hold", from: "port" } }];
  heard(["doubtful", 1], ["doubtful", 2]);
  t.match(vms.views(), [{ phase: "here", held: 0, overflowed: 0 }], "neither kept nor counted");
  t.match(tunnel.entries(), [{ port: "tap-web1", hold: null }], "nor asked for again at once: it would be so of each packet");
  heard(["doubtful", 3]);
  t.match(vms.views(), [{ phase: "here", held: 0, overflowed: 0 }], "one that was on its way");
  clock.advance(1000);
  t.match(tunnel.entries(), waits);

  heard(["doubtful", 4], ["refused", 5]);
  t.match(vms.views(), [{ phase: "here", held: 1, overflowed: 0 }], "what is refused for certain waits for a word on the port");
  clock.advance(31);
  t.match(vms.views(), [{ phase: "here", held: 0, overflowed: 1 }]);
  clock.advance(1000);
  t.match(tunnel.entries(), waits);
  t.same(ports.frames, [], "nothing goes to the port twice");

  said.length = 0;
  eyes.present = eyes.present.map((link) => ({ ...link, carrier: false }));
  heard(["refused", 6], ["doubtful", 7], ["refused", 8], ["doubtful", 9]);
  t.match(vms.views(), [{ phase: "leaving", held: 0, overflowed: 1 }], "pulled, before the kernel has said so");
  t.match(said, [{ kind: "vmReport", state: "absent", basedOn: 3 }]);
  t.same(eyes.passed.map(({ frame, to }) => [frame[14], to]), [6, 7, 8, 9].map((tag) => [tag, "10.2.0.2"]), "all are passed on, in order");
  heard(["doubtful", 10]);
  t.same(eyes.passed.at(-1)?.frame[14], 10, "one that was on its way");
  vms.close();
});
