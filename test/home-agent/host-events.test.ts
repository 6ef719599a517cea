import t from "tap";
import { ApiClient } from "../../cli/api-client.js";
import type { HostReply } from "../../cli/replies.js";
import { Bench, until } from "./bench.js";

await t.test("a host that goes or comes is told of with its VMs, as /v1/hosts has them", async (t) => {
  const bench = await Bench.open(t);
  const { a } = await bench.withVm();
  const over = new AbortController();
  t.teardown(() => { over.abort(); });
  const events = await new ApiClient(new URL(`http://127.0.0.1:${String(bench.at.api.port)}`)).events(over.signal);
  const told: HostReply[] = [];
  const reading = (async () => {
    for await (const each of events) if (each.event === "host") told.push(each.data);
  })();
  await a.disconnect();
  await until("it is gone", () => told.length === 1);
  t.match(told[0], { name: "host-a", state: "gone", vms: ["web1"] });
  await a.connect();
  await until("it is back", () => told.length === 2);
  t.match(told[1], { name: "host-a", state: "connected", vms: ["web1"] });
  const listed = await bench.call("GET", "/v1/hosts");
  t.match(listed.body, [{ name: "host-a", vms: told[1]?.vms }, {}, {}]);
  over.abort();
  await reading;
});
