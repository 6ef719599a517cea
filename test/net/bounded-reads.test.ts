import t from "tap";
import { FRAMES_PER_TURN, readSome } from "../../net/bounded-reads.js";
import { EAGAIN, ENETDOWN } from "../../net/errno.js";

t.test("somebody who sends without end is left to the next turn", (t) => {
  let read = 0;
  t.equal(readSome(() => 60, () => { read += 1; }, "to look"), true);
  t.equal(read, FRAMES_PER_TURN);
  t.equal(readSome(() => -ENETDOWN, () => { read += 1; }, "to look"), true, "nor is an interface waited for that only says that it is down");
  t.equal(read, FRAMES_PER_TURN);
  const answers = [10, -ENETDOWN, 11, -EAGAIN, 12];
  const lengths: number[] = [];
  t.equal(readSome(() => answers.shift() ?? 0, (length) => { lengths.push(length); }, "to look"), false);
  t.same([lengths, answers], [[10, 11], [12]]);
  t.throws(() => readSome(() => -5, () => undefined, "to look"), { code: "kernel-refused" });
  t.end();
});
