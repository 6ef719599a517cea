import type { Ipv4 } from "../../../model/address.js";
import type { Namespace } from "./namespaces.js";

/**
 * A machine whose firewall drops what it does not know, and what belongs to no connection: input takes protocol 4 only, forward what comes from or goes to `forwarded`
 * (null: nothing). By nft, or by iptables-legacy where the kernel has only that. Returns what removes it.
 */
export function strictFirewall(net: Namespace, forwarded: { readonly address: Ipv4; readonly length: number } | null): () => void {
  const prefix = forwarded === null ? null : `${forwarded.address}/${String(forwarded.length)}`;
  try {
    const accepted = prefix === null ? "" : `ip saddr ${prefix} accept\n ip daddr ${prefix} accept`;
    const chain = (name: string, hook: string, rules: string): string => `chain ${name} {\n type filter hook ${hook} priority 0; policy drop;\n ct state invalid drop\n ${rules}\n}\n`;
    net.exec("nft", `table ip careoftest {\n${chain("forwarding", "forward", accepted)}${chain("incoming", "input", "ip protocol 4 accept")}}`);
    return () => { net.exec("nft", "delete", "table", "ip", "careoftest"); };
  } catch (thrown) {
    if (!(thrown instanceof Error) || !thrown.message.includes("not supported")) throw thrown;
  }
  const legacy = (...given: readonly string[]): void => { net.exec("iptables-legacy", ...given); };
  for (const chain of ["INPUT", "FORWARD"]) {
    legacy("-P", chain, "DROP");
    legacy("-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP");
  }
  legacy("-A", "INPUT", "-p", "4", "-j", "ACCEPT");
  if (prefix !== null) for (const side of ["-s", "-d"]) legacy("-A", "FORWARD", side, prefix, "-j", "ACCEPT");
  return () => {
    for (const chain of ["INPUT", "FORWARD"]) {
      legacy("-P", chain, "ACCEPT");
      legacy("-F", chain);
    }
  };
}
