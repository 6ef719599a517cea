import t from "tap";
import type { SentOn } from "../../../net/tunnel.js";
import { A, B, held, rig, update, VM } from "./rig.js";

await t.test("what the data plane is told when a hold ends: how far each kind has been sent on, and nothing that still waits here", async (t) => {
  const { clock, make, pass } = rig(t);
  const { vms, eyes, tunnel, ports } = await make();
  const told: SentOn[] = [];
  const put = tunnel.put.bind(tunnel);
  tunnel.put = (entry, sendOn) => {
    put(entry, sendOn === undefined ? undefined : () => {
      const sent = sendOn();
      told.push(sent);
      return sent;
    });
  };
  const last = (): SentOn | undefined => told.splice(0).at(-1);
  vms.binding(update(B, 3), true);
  t.same(last(), { directly: 0, straggler: 0 });
  eyes.waiting.push(held("straggler", 1), held("directly", 4), held("straggler", 2), held("directly", 5));
  eyes.heard?.held();
  t.match(tunnel.entries(), [{ hold: { from: "all" } }]);

  eyes.change("tap-web1", 7, true);
  t.match(tunnel.entries(), [{ hold: { from: "home-agents" } }]);
  t.same(ports.frames.map(({ frame }) => frame[14]), [1, 2]);
  t.same(last(), { directly: 0, straggler: 2 }, "what comes directly waits on");

  vms.arrive(VM);
  eyes.waiting.push(held("straggler", 3), held("directly", 6));
  eyes.heard?.held();
  vms.binding(update(A, 4), false);
  pass(4);
  eyes.waiting.push(held("directly", 7));
  clock.advance(1);
  t.match(tunnel.entries(), [{ hold: { from: "port" } }]);
  t.same(ports.frames.map(({ frame }) => frame[14]), [1, 2, 3, 4, 5, 6, 7]);
  t.same(last(), { directly: 7, straggler: 3 });

  vms.leave(VM, null);
  vms.close();
});
