import { readdirSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import koffi from "koffi";
import t from "tap";
import { ipv4 } from "../../model/address.js";
import { errnoName, errnoOf } from "../../net/errno.js";
import { close, open } from "../../net/syscall.js";
import { LinuxUplinkNews } from "../../net/uplink-news.js";
import { Namespaces, type Namespace } from "./lab/namespaces.js";
import { flood } from "./uplink-again.js";

const LIMIT_MS = 20_000;
const libc = koffi.load(null);
const dup = libc.func("dup", "int", ["int"]);
const dup2 = libc.func("dup2", "int", ["int", "int"]);

const all = new Namespaces();
t.teardown(() => { all.destroy(); });
t.setTimeout(120_000);
const far = all.make("far");

function sockets(): number[] {
  return readdirSync("/proc/self/fd").filter((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`).startsWith("socket:");
    } catch {
      return false;
    }
  }).map(Number);
}

/** Puts what is no socket in a socket's place; returns how to undo it. */
function spoil(descriptor: number): () => void {
  const kept = Number(dup(descriptor));
  const nothing = open("/dev/null", 0);
  dup2(nothing, descriptor);
  close(nothing);
  return () => {
    dup2(kept, descriptor);
    close(kept);
  };
}

interface Heard {
  readonly net: Namespace;
  readonly news: LinuxUplinkNews;
  readonly said: readonly string[];
  /** Of the news, then of the questions: the kernel gives the lowest number that is free. */
  readonly descriptors: readonly number[];
  /** What is said until `last` is. */
  readonly until: (last: string) => Promise<readonly string[]>;
}

function listening(label: string): Heard {
  const net = all.make(label);
  all.connect(net, "uplink", far, label);
  net.ip("address add 10.0.1.1/24 dev uplink", "address add 10.0.2.1/24 dev uplink");
  // Otherwise the next one of the same network takes the place of the one that goes.
  net.sysctl("net.ipv4.conf.uplink.promote_secondaries", "0");
  const before = new Set(sockets());
  const news = net.within(() => new LinuxUplinkNews({ uplink: "uplink", address: ipv4("10.0.1.1") }));
  const descriptors = sockets().filter((each) => !before.has(each)).sort((a, b) => a - b);
  const said: string[] = [];
  news.watch({
    lost: (why, error) => { said.push(error === undefined ? why : `${why} ${errnoName(errnoOf(error))}`); },
    there: () => { said.push("there"); },
    failed: (error) => { said.push(`failed ${errnoName(errnoOf(error))}`); },
  });
  const until = async (last: string): Promise<readonly string[]> => {
    for (const end = performance.now() + LIMIT_MS; !said.includes(last) && performance.now() < end;) await sleep(5);
    return said.splice(0);
  };
  return { net, news, said, descriptors, until };
}

t.test("an address counts that is the own one, or the last one", async (t) => {
  const { net, news, until } = listening("addresses");
  t.teardown(() => { news.close(); });
  // What follows shows that there is no more to come.
  net.ip("address del 10.0.2.1/24 dev uplink", "link set uplink down");
  t.same(await until("uplink-down"), ["uplink-down"], "one of two goes, and it is not ours");
  net.ip("link set uplink up", "address add 10.0.3.1/24 dev uplink", "address add 10.0.3.2/24 dev uplink");
  t.same(new Set(await until("there")), new Set(["there"]));
  net.ip("address del 10.0.1.1/24 dev uplink", "link set uplink down");
  t.same((await until("uplink-down")).filter((each) => each !== "there"), ["address-gone", "uplink-down"], "the own one");
  net.ip("link set uplink up");
  await until("there");
  net.ip("address del 10.0.3.1/24 dev uplink", "address add 10.0.3.1/24 dev uplink", "link set uplink down");
  t.same(await until("uplink-down"), ["address-gone", "there", "uplink-down"], "the last one, and the one that goes with it, in one moment");
  net.ip("link set uplink up", "address del 10.0.3.1/24 dev uplink", "address add 10.0.1.1/24 dev lo", "address del 10.0.1.1/24 dev lo", "link set uplink down");
  t.same(await until("uplink-down"), ["there", "address-gone", "there", "address-gone", "uplink-down"], "the own one on another interface");
  net.ip("link set uplink up", "address add 10.0.4.1/24 dev uplink", "link del uplink");
  const gone = await until("uplink-gone");
  t.same(gone.at(-1), "uplink-gone");
  all.connect(net, "uplink", far, "addresses");
  net.ip("address add 10.0.5.1/24 dev uplink", "address add 10.0.6.1/24 dev uplink", "address del 10.0.5.1/24 dev uplink", "link set uplink down");
  t.same((await until("uplink-down")).filter((each) => each !== "there"), ["uplink-down"], "another interface of that name has its own addresses");
  t.equal(news.look(), "uplink-down");
});

t.test("what the kernel refuses once is a loss of anything, and the news goes on", async (t) => {
  const { descriptors, net, news, said, until } = listening("refused");
  t.teardown(() => { news.close(); });
  t.equal(descriptors.length, 2);
  const undo = spoil(descriptors[1] ?? -1);
  flood(net);
  const missed = await until("news-missed ENOTSOCK");
  t.ok(missed.length > 0 && missed.every((each) => each === "news-missed ENOTSOCK"), "of what was missed it could not be asked");
  t.throws(() => news.look(), { code: "kernel-refused" });
  undo();
  t.equal(news.look(), null);
  net.ip("link set uplink down", "link set uplink up");
  t.same((await until("there")).slice(0, 2), ["uplink-down", "there"]);
  t.same(said.filter((each) => each.startsWith("failed")), []);
});

t.test("a descriptor that cannot be read is the end, which is told once", async (t) => {
  const { descriptors, net, news, said, until } = listening("broken");
  const undo = spoil(descriptors[0] ?? -1);
  net.ip("link set uplink down");
  t.same(await until("failed ENOTSOCK"), ["failed ENOTSOCK"]);
  undo();
  net.ip("link set uplink up");
  await sleep(100);
  t.same(said, []);
  news.close();
});
