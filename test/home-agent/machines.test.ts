import fc from "fast-check";
import t from "tap";
import { TwoHosts } from "./two-hosts.js";

const RUNS = Number(process.env["CAREOF_PROPERTY_RUNS"] ?? 1500);

await t.test("whatever happens in whatever order: one guest, one owner per epoch, epochs only grow, and it ends where the guest is", (t) => {
  const outcomes = new Map<string, number>();
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 9999 }), { minLength: 5, maxLength: 80, size: "max" }), (choices) => {
      const world = new TwoHosts();
      const trace: string[] = [];
      try {
        for (const choice of choices) {
          const steps = world.steps();
          const step = steps[choice % steps.length];
          if (step === undefined) continue;
          trace.push(step.name);
          step.run();
          world.check();
        }
        trace.push("quiesce");
        world.quiesce();
        world.check();
        const { binding, migration } = world.state;
        const runner = world.hosts.find((host) => host.runs);
        for (const result of world.finished) outcomes.set(result, (outcomes.get(result) ?? 0) + 1);
        if (runner === undefined) throw new Error(`I8: nobody runs the guest, and nothing is lost: ${binding.phase} ${migration?.phase ?? ""}`);
        if (migration !== null) throw new Error(`it does not end: ${migration.phase}`);
        if (binding.phase !== "bound" || binding.owner !== runner.name) throw new Error(`I5: ${runner.name} runs it, ${String(binding.owner)} owns it (${binding.phase})`);
      } catch (thrown) {
        throw new Error(`${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}\n${trace.join("\n")}`, { cause: thrown });
      }
    }),
    { numRuns: RUNS },
  );
  t.comment(JSON.stringify(Object.fromEntries(outcomes)));
  for (const result of ["completed", "failed", "cancelled"]) t.ok((outcomes.get(result) ?? 0) > 0, `the runs contain a migration that ends "${result}"`);
  t.end();
});

await t.test("lost: only when nobody who could know can be asked, and the first who can ends it", (t) => {
  const play = (world: TwoHosts, ...names: readonly string[]): void => {
    for (const name of names) {
      const step = world.steps().find((each) => each.name === name);
      if (step === undefined) throw new Error(`"${name}" cannot happen now: ${[...new Set(world.steps().map((each) => each.name))].join(", ")}`);
      step.run();
      world.check();
    }
  };
  const lost = (): TwoHosts => {
    const world = new TwoHosts();
    play(world, "operator: to host-b", "host-b hears", "host-a hears", "host-a releases", "host-b is cut off", "host-a says released");
    for (let i = 0; i < 20 && world.state.binding.phase !== "lost"; i++) play(world, "time passes");
    t.same([world.state.binding.phase, world.state.binding.owner, world.state.binding.epoch, world.finished], ["lost", "host-b", 2, ["lost"]]);
    return world;
  };
  const late = lost();
  play(late, "host-b gets the RELEASE", "host-b registers");
  late.quiesce();
  t.same([late.state.binding.phase, late.state.binding.owner, late.finished], ["bound", "host-b", ["lost", "completed"]], "the target had it all the time");

  const dead = lost();
  play(dead, "the relay breaks", "host-b gives up", "host-b registers");
  dead.quiesce();
  t.same([dead.state.binding.phase, dead.state.binding.owner, dead.state.binding.epoch], ["bound", "host-a", 3], "the target had destroyed it: the source resumes");

  const killed = lost();
  play(killed, "the home agent is killed");
  t.equal(killed.state.migration?.phase, "lost", "a restart forgets nothing");
  t.equal(killed.dispatch({ type: "resolve", host: killed.a.name, connected: false }), "host-gone");
  t.equal(killed.dispatch({ type: "resolve", host: killed.b.name, connected: true }), "accepted");
  t.same([killed.state.binding.phase, killed.state.binding.owner], ["bound", "host-b"]);
  t.end();
});
