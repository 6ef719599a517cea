import t from "tap";
import { missedEvents, type Found } from "../../../agent/migration/missed-events.js";
import type { SourceEvent } from "../../../agent/migration/source-shapes.js";
import { millis } from "../../../model/ids.js";

t.test("what was missed while a guest's monitor did not answer", (t) => {
  const at = millis(7);
  const stopped: SourceEvent = { kind: "stopped", at };
  const copying: Found = { status: "running", stream: "active", sending: true, heard: "active", at };
  const cases: readonly (readonly [string, Partial<Found>, boolean, readonly SourceEvent[]])[] = [
    ["nothing", {}, false, []],
    ["it stopped at the gate", { status: "halted", stream: "pre-switchover" }, false, [stopped, { kind: "stream", status: "pre-switchover" }]],
    ["that was seen", { status: "halted", stream: "pre-switchover", heard: "pre-switchover" }, true, []],
    ["it was handed over", { status: "handed-over", stream: "completed", heard: "device" }, true, [{ kind: "stream", status: "completed" }]],
    ["all of it", { status: "handed-over", stream: "completed", heard: null }, false, [stopped, { kind: "stream", status: "completed" }]],
    ["it went by postcopy", { status: "loaded", stream: "postcopy-active", heard: "device" }, true, [{ kind: "stream", status: "postcopy-active" }]],
    ["the rest of its memory came", { status: "handed-over", stream: "completed", heard: "postcopy-active" }, true, [{ kind: "stream", status: "completed" }]],
    ["its stream failed, and it runs", { stream: "failed" }, false, [{ kind: "stream", status: "failed" }]],
    ["it was seen to stop, and runs: somebody else has continued it", { status: "running", stream: "active" }, true, [{ kind: "resumed" }]],
    ["it died", { status: "gone", stream: "none" }, false, [{ kind: "guest", status: "gone", stream: "none" }]],
    ["before anything was sent: the end of an earlier move", { stream: "completed", sending: false, heard: null }, false, []],
    ["and it died then", { status: "gone", stream: "none", sending: false }, false, [{ kind: "guest", status: "gone", stream: "none" }]],
    ["no stream", { stream: "none", heard: null }, false, []],
  ];
  for (const [name, found, stopSeen, missed] of cases) t.same(missedEvents({ stopAt: stopSeen ? millis(5) : null, phase: stopSeen ? "stopped" : "copying" }, { ...copying, ...found }), missed, name);
  t.end();
});
