import t from "tap";
import { careof, shortLimits } from "./captured-terminal.js";
import { ScriptedHomeAgent, web1 } from "./scripted-home-agent.js";

const LONG = [["start", "web1", "host-a"], ["adopt", "web1", "host-a"], ["stop", "web1"], ["resolve", "web1", "host-a"]] as const;

async function opened(t: { teardown: (end: () => Promise<void>) => unknown }): Promise<ScriptedHomeAgent> {
  const agent = await ScriptedHomeAgent.open();
  t.teardown(() => agent.close());
  return agent.on("GET /healthz", { json: { status: "ok" } });
}

t.test("how long a guest may take to start or stop is the home agent's to say", async (t) => {
  const agent = await opened(t);
  for (const words of LONG) {
    agent.asked.length = 0;
    // Once the client has asked for several signs of life, and far beyond the time within which it wants any other answer.
    agent.on(`POST /v1/vms/web1/${words[0]}`, (response) => {
      const answer = (): void => { response.end(JSON.stringify(web1)); };
      const look = setInterval(() => {
        if (agent.asked.filter(({ path }) => path === "/healthz").length < 4) return;
        clearInterval(look);
        answer();
      }, 5);
    });
    const ran = await careof([...words, "--api", agent.url], { limits: shortLimits });
    t.equal(ran.code, 0, `${words.join(" ")}: ${ran.stderr}`);
  }
  agent.on("POST /v1/vms/web1/start", (response) => {
    setTimeout(() => { response.writeHead(504).end(JSON.stringify({ code: "timed-out", message: "the start of web1 did not end within 3610000 ms", retryable: true })); }, 600);
  });
  t.match(await careof(["start", "web1", "host-a", "--api", agent.url], { limits: shortLimits }), { code: 1, stderr: /did not end within 3610000 ms \(timed-out\)/ }, "and it is the home agent that ends it");
});

t.test("a home agent that is not there any more is not waited for", async (t) => {
  const agent = await opened(t);
  agent.on("POST /v1/vms/web1/start", () => undefined).on("GET /healthz", () => undefined);
  t.match(await careof(["start", "web1", "host-a", "--api", agent.url], { limits: shortLimits }), { code: 1, stdout: "", stderr: /did not answer GET healthz within 0\.3 s \(timed-out\)/ }, "silent");
  agent.on("GET /healthz", (response) => { response.destroy(); });
  t.match(await careof(["start", "web1", "host-a", "--api", agent.url], { limits: shortLimits }), { code: 1, stdout: "", stderr: /cannot reach the home agent .*\(home-agent-unreachable\)/ }, "gone");
  agent.on("POST /v1/vms/web1/start", (response) => { response.destroy(); });
  t.match(await careof(["start", "web1", "host-a", "--api", agent.url]), { code: 1, stdout: "", stderr: /cannot reach the home agent .*\(home-agent-unreachable\)/ }, "its connection ends");
});
