import { closeSync, openSync } from "node:fs";
import { close, open, setNetworkNamespace } from "./syscall.js";

/**
 * Runs `work` with the calling thread inside the network namespace at `path` (`/run/netns/NAME`), then goes back. `work` is synchronous: what it opens
 * stays in that namespace, what it leaves to the thread pool (asynchronous files, name look-up) does not. For a promise the namespace is left
 * at the first `await`.
 */
export function inNamespace<T>(path: string, work: () => T): T {
  const home = openSync("/proc/thread-self/ns/net", "r");
  try {
    const there = open(path, 0);
    try {
      setNetworkNamespace(there);
    } finally {
      close(there);
    }
    try {
      return work();
    } finally {
      setNetworkNamespace(home);
    }
  } finally {
    closeSync(home);
  }
}
