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
  for (const result of ["completed", "failed", "cancelled", "lost"]) t.ok((outcomes.get(result) ?? 0) > 0, `the runs contain a migration that ends "${result}"`);
  t.end();
});
