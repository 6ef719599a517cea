import t from "tap";
import { droppedAt } from "../../bench/handover/port-drops.js";

const TABLE = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   60804     258    0    0    0     0          0         0    60804     258    0    0    0     0       0          0
co-web1: 10487308   92053    0    3    0     0          0         0  7107913  107636    0 2231    0     0       0          0
co-web10:      0       0    0    0    0     0          0         0        0       0    0   17    0     0       0          0
`;

t.test("what a port has dropped, by the kernel's table", (t) => {
  t.equal(droppedAt("co-web1", TABLE), 2231, "sent to it, and not what it sent");
  t.equal(droppedAt("co-web10", TABLE), 17);
  t.equal(droppedAt("co-web2", TABLE), 0, "none of that name");
  t.equal(droppedAt("lo", TABLE), 0);
  t.end();
});
