import t from "tap";
import { Hosts, type HostSession } from "../../home-agent/hosts.js";
import { ipv4 } from "../../model/address.js";
import { hostId, millis } from "../../model/ids.js";
import { ipInIp } from "../../model/locator.js";
import { LIFE } from "./script.js";

const A = hostId("host-a");
const ADDRESS = ipv4("10.1.0.2");
const config = { name: A, careOf: [ADDRESS], tokenHash: "" };

function session(): HostSession {
  return {
    host: A, since: millis(0), life: LIFE, software: "", locators: [ipInIp(ADDRESS)], tell: () => undefined, ask: () => Promise.reject(new Error("nobody answers")),
    capabilities: { ownsTap: true, ownsStream: true, canLead: true, canHoldTarget: true, qemuVersion: "", accelerator: "none", dataPlane: "bpf", memoryBytes: 0, localDisks: true, adopts: true, postcopy: true },
  };
}

t.test("a host's data plane passes on what comes for a VM without its agent's connection, for a while", (t) => {
  const hosts = new Hosts(() => null, millis(10_000));
  hosts.configure([config], []);
  t.notOk(hosts.mayPassOn(null, millis(10_001)), "nobody");
  t.notOk(hosts.mayPassOn(hostId("host-x"), millis(10_001)), "who is not listed");
  t.ok(hosts.mayPassOn(A, millis(14_999)), "this process is young: it may be back any moment");
  t.notOk(hosts.mayPassOn(A, millis(15_000)), "it has never been here");
  const here = session();
  hosts.arrived(here);
  t.ok(hosts.mayPassOn(A, millis(90_000)), "it is here");
  hosts.left(here, { mono: millis(100_000), wall: millis(0) });
  t.ok(hosts.mayPassOn(A, millis(104_999)), "its connection is lost: an agent that is restarted, say");
  t.notOk(hosts.mayPassOn(A, millis(105_000)), "it has died");
  const again = session();
  hosts.arrived(again);
  hosts.configure([], []);
  t.notOk(hosts.mayPassOn(A, millis(105_001)), "it is not listed any more");
  t.end();
});
