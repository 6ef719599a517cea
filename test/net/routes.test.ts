import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import t from "tap";
import { addressFromBytes, ipv4, isV4, type Ipv4 } from "../../model/address.js";
import { HOME_AGENT_PROTOCOL, HOST_PROTOCOL, listRoutes, MAIN_TABLE, routeRequest, type Route } from "../../net/netlink/routes.js";

/** A kernel that lists what it was asked to make: its messages have the form of the request's. */
function listed(routes: readonly Route[]): Route[] {
  const replies = routes.map((route) => {
    const { body, type } = routeRequest(route);
    return { type, body: Buffer.from(body) };
  });
  return listRoutes({ dump: () => replies }, HOME_AGENT_PROTOCOL);
}

const address: fc.Arbitrary<Ipv4> = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((value) => addressFromBytes(value)).filter(isV4);
/** Few values, so that many are alike but for their address. */
const route: fc.Arbitrary<Route> = fc.record({
  destination: fc.record({ address, length: fc.constantFrom(32, 24, 16) }),
  table: fc.constantFrom(MAIN_TABLE, 1000),
  protocol: fc.constant(HOME_AGENT_PROTOCOL),
  device: fc.constantFrom(3, 3, 4, null),
  via: fc.constantFrom(ipv4("169.254.0.1"), null),
  mtu: fc.constantFrom(0, 1480, 1480, 1400),
  metric: fc.constantFrom(0, 60_000),
  source: fc.constantFrom(null, ipv4("192.0.2.1")),
  encap: fc.constantFrom(null, { source: ipv4("192.0.2.1"), destination: ipv4("192.0.2.11") }),
}).map((made) => ({ ...made, destination: { ...made.destination }, via: made.device === null ? null : made.via }));

void t.test("whatever comes one after the other, each route is read as what it is", (t) => {
  fc.assert(fc.property(fc.array(route, { maxLength: 30 }), (routes) => {
    assert.deepStrictEqual(listed(routes), routes);
  }), { numRuns: 300 });
  t.end();
});

void t.test("the default route, which has no destination, and one of somebody else's between ours", (t) => {
  const ours: Route = { destination: { address: ipv4("198.51.100.7"), length: 32 }, table: MAIN_TABLE, protocol: HOME_AGENT_PROTOCOL, device: 3, via: null, mtu: 1480, metric: 0, source: null, encap: null };
  const next: Route = { ...ours, destination: { address: ipv4("198.51.100.8"), length: 32 } };
  const all: Route = { ...ours, destination: { address: ipv4("0.0.0.0"), length: 0 } };
  t.strictSame(listed([ours, all, all, next, { ...ours, protocol: HOST_PROTOCOL }, next]), [ours, all, all, next, next]);
  t.end();
});
