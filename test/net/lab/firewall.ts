import type { Ipv4 } from "../../../model/address.js";
import type { Namespace } from "./namespaces.js";

interface Prefix {
  readonly address: Ipv4;
  readonly length: number;
}

/** Has this kernel said that it knows no nft? Asking it again would cost a process each time. */
let onlyLegacy = false;

/**
 * A machine whose firewall drops what it does not know, and what belongs to no connection: input takes protocol 4 only, and not even that without `tunnels`; forward what comes from or goes to
 * `forwarded` (null: nothing). By nft, or by iptables-legacy where the kernel has only that. In place of what this has set there before. Returns what removes it.
 */
export function strictFirewall(net: Namespace, forwarded: Prefix | null, { tunnels = true }: { readonly tunnels?: boolean } = {}): () => void {
  const prefix = forwarded === null ? null : `${forwarded.address}/${String(forwarded.length)}`;
  if (!onlyLegacy) {
    try {
      return byNft(net, prefix, tunnels);
    } catch (thrown) {
      if (!(thrown instanceof Error) || !thrown.message.includes("not supported")) throw thrown;
      onlyLegacy = true;
    }
  }
  return byLegacy(net, prefix, tunnels);
}

function byNft(net: Namespace, prefix: string | null, tunnels: boolean): () => void {
  const accepted = prefix === null ? "" : `ip saddr ${prefix} accept\n ip daddr ${prefix} accept`;
  const chain = (name: string, hook: string, rules: string): string => `chain ${name} {\n type filter hook ${hook} priority 0; policy drop;\n ct state invalid drop\n ${rules}\n}\n`;
  net.exec("nft", `table ip careoftest\ndelete table ip careoftest\ntable ip careoftest {\n${chain("forwarding", "forward", accepted)}${chain("incoming", "input", tunnels ? "ip protocol 4 accept" : "")}}`);
  return () => { net.exec("nft", "delete", "table", "ip", "careoftest"); };
}

/** As a whole: a process for each rule takes its time in user-mode-linux. */
function byLegacy(net: Namespace, prefix: string | null, tunnels: boolean): () => void {
  const restore = (policy: string, rules: readonly string[]): void => {
    net.feed(["*filter", `:INPUT ${policy} [0:0]`, `:FORWARD ${policy} [0:0]`, ":OUTPUT ACCEPT [0:0]", ...rules, "COMMIT", ""].join("\n"), "iptables-legacy-restore");
  };
  restore("DROP", [
    ...["INPUT", "FORWARD"].map((chain) => `-A ${chain} -m conntrack --ctstate INVALID -j DROP`),
    ...(tunnels ? ["-A INPUT -p 4 -j ACCEPT"] : []),
    ...(prefix === null ? [] : ["-s", "-d"].map((side) => `-A FORWARD ${side} ${prefix} -j ACCEPT`)),
  ]);
  return () => { restore("ACCEPT", []); };
}
