import t from "tap";
import { waiting } from "../../cli/waiting.js";
import { millis } from "../../model/ids.js";
import { FakeClock } from "../model/fake-clock.js";
import { careof, CapturedTerminal } from "./captured-terminal.js";
import { ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

t.test("an answer that takes longer than a moment is said to be waited for: in lines, or in one that is drawn over", async (t) => {
  for (const live of [false, true]) {
    const clock = new FakeClock();
    const terminal = new CapturedTerminal();
    terminal.errIsLive = live;
    terminal.errColumns = live ? 40 : null;
    let answer: (word: string) => void = () => undefined;
    const waited = waiting({ terminal, clock }, "web1 is started on host-a", new Promise<string>((resolve) => { answer = resolve; }));
    clock.advance(millis(1900));
    t.equal(terminal.stderr, "");
    clock.advance(millis(12_000));
    if (live) {
      const lines = terminal.stderr.split("\r\u001b[K").slice(1);
      t.equal(lines.length, 12, "each second");
      t.ok(lines.every((line) => line.length < 40));
    } else t.equal(terminal.stderr, "web1 is started on host-a: 2.0 s so far; Ctrl-C stops waiting, it goes on\nweb1 is started on host-a: 12 s so far; Ctrl-C stops waiting, it goes on\n");
    answer("done");
    t.equal(await waited, "done");
    t.equal(terminal.stderr.endsWith("\r\u001b[K"), live, "and nothing of it stays on a terminal");
    const before = terminal.stderr;
    clock.advance(millis(60_000));
    t.equal(terminal.stderr, before);
  }
});

t.test("whatever a guest has time for says so: start, stop, adopt, release, resolve", async (t) => {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  await Promise.all([["start", "web1", "host-a"], ["stop", "web1"], ["adopt", "web1", "host-a"], ["release", "web1"], ["resolve", "web1", "host-a"]].map(async (words) => {
    let answer = (): void => undefined;
    agent.on(`POST /v1/vms/web1/${words[0] ?? ""}`, (response) => {
      answer = () => { response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(words[0] === "release" ? { vm: "web1", host: "host-a", detail: "process 7" } : web1)); };
    });
    const terminal = new CapturedTerminal();
    const running = careof([...words, "--output", "json", "--api", agent.url], { terminal });
    await terminal.until((each) => each.stderr.includes("so far"));
    answer();
    const { code, stdout, stderr } = await running;
    t.equal(code, 0, words.join(" "));
    t.match(JSON.parse(stdout), { vm: "web1" }, "the result is the only thing on standard output");
    t.match(stderr, /^web1 is .*: [\d.]+ s so far; Ctrl-C stops waiting, it goes on$/m);
  }));
});
