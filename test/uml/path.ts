import t from "tap";
import { inNamespace, must } from "../../deploy/lab/command.js";
import { ExternalLab } from "../../deploy/lab/external.js";
import { flipsUnderTraffic } from "../../deploy/lab/flips.js";
import { HOSTS, PLAN } from "../../deploy/lab/plan.js";
import { DRIVERS } from "../net/lab/topology.js";

/*
 * The whole path on the ipip data plane: home agent and two host agents as processes of their own from ordinary configuration, a VM that is a namespace, and its moves
 * under traffic. User-mode-linux has one slow CPU, so nothing here is about time.
 */
t.setTimeout(450_000);
const FLIPS = 3;

await t.test("a VM moves between two hosts", async (t) => {
  const lab = await ExternalLab.start({
    homeAgent: { tunnel: { uplink: "core0", address: PLAN.homeAgent.core, dataPlane: DRIVERS.home } },
    agent: { tunnel: { dataPlane: DRIVERS.hosts }, qemu: { accel: "tcg" } },
  });
  t.teardown(() => lab.close());
  const hosts = JSON.parse((await lab.lab.careof(["hosts", "--output", "json"])).stdout) as { readonly capabilities: { readonly dataPlane: string } }[];
  t.same(hosts.map(({ capabilities }) => capabilities.dataPlane), [DRIVERS.hosts, DRIVERS.hosts]);
  for (const part of ["home-agent", ...HOSTS] as const) {
    const driver = part === "home-agent" ? DRIVERS.home : DRIVERS.hosts;
    t.match(lab.lab.part(part).tail(1000), new RegExp(`"dataPlane":"${driver}","reason":"configured".*"msg":"data plane: ${driver} \\(configured\\)"`), `${part} says so when it starts`);
  }
  const homeRoutes = (): Promise<string> => must(inNamespace(lab.lab.namespace("h"), ["ip", "route", "show", "proto", "202"]));
  t.match(await homeRoutes(), new RegExp(`${PLAN.guest.address} +encap ip .* dst ${PLAN.hosts["host-a"].careOf} `));

  const { windows, survived } = await flipsUnderTraffic(lab, { order: "plug", hooks: true, flips: FLIPS, pps: 100, marginMs: 500 });
  t.ok(survived, "no session broke");
  const lost = windows.map((window) => window.sentDown - window.receivedDown + window.sentUp - window.receivedUp);
  t.comment(`lost ${lost.join(" ")} of ${String(windows.reduce((sum, { sentDown, sentUp }) => sum + sentDown + sentUp, 0))}`);
  // On a machine this slow the VM may use its new cable before the agent has seen it: that is the VM's loss, and a rare one.
  t.equal([...lost].sort((one, other) => one - other)[Math.floor(FLIPS / 2)], 0, "nothing was lost");
  t.ok(Math.max(...lost) < 10);
  t.match(await homeRoutes(), new RegExp(`${PLAN.guest.address} +encap ip .* dst ${PLAN.hosts[lab.at ?? "host-a"].careOf} `));
  t.same(await lab.close(), [], "nothing is left");
});
