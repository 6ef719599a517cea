import type { Ipv4, Prefix } from "../model/address.js";
import { toCareofError, type CareofError } from "../model/errors.js";
import { decodeAddress, listAddresses, RTM_DELADDR, RTM_NEWADDR } from "./netlink/addresses.js";
import { Netlink, type Reply } from "./netlink/client.js";
import { decodeLink, findLink, RTM_DELLINK, RTM_NEWLINK, type Link } from "./netlink/links.js";
import { NetlinkNews, RTMGRP_IPV4_IFADDR, RTMGRP_LINK } from "./netlink/news.js";
import { Readiness } from "./readiness.js";

/**
 * Why the kernel may have dropped what was set on the uplink. It forgets routes and stated neighbours of an interface that goes down or loses its last address, routes that name an address of
 * ours as source with that address, and the programs with the interface; other addresses of the uplink may come and go. `news-missed`: any of these.
 */
export type UplinkLoss = "uplink-down" | "uplink-gone" | "address-gone" | "news-missed";

export interface UplinkListener {
  /** `error`: the news or what it made necessary could not be read. */
  lost(why: UplinkLoss, error?: CareofError): void;
  /** The uplink came up, or an address came to it: what failed before may work now. */
  there(): void;
  /** There will be no more news: not for a failure that passes, of which `news-missed` is told. */
  failed(error: CareofError): void;
}

/**
 * What happens to the uplink. Contract: from its making on nothing is overlooked; it is told from `watch` on, which may be called once, in the order in which it happened, of one thing perhaps more than once, and never of
 * what is no loss (another MTU, a carrier that comes and goes, what the tunnels themselves set). The listener must not throw.
 */
export interface UplinkNews {
  watch(listener: UplinkListener): void;
  /** As it is now: why nothing can be set on it, or `null`. @throws CareofError `kernel-refused` */
  look(): "uplink-down" | "uplink-gone" | null;
  /** Idempotent. */
  close(): void;
}

export interface UplinkNewsOptions {
  readonly uplink: string;
  /** Own outer address, which may stand on another interface. */
  readonly address: Ipv4;
}

/** By rtnetlink, in the network namespace in which it was made. */
export class LinuxUplinkNews implements UplinkNews {
  readonly #options: UplinkNewsOptions;
  readonly #news = new NetlinkNews(RTMGRP_LINK | RTMGRP_IPV4_IFADDR);
  readonly #netlink = new Netlink();
  readonly #readiness: Readiness;
  #listener: UplinkListener | null = null;
  /** As the news that was read last had it; `null`: gone. */
  #known: Pick<Link, "index" | "up"> | null = null;
  /** The uplink's, with the lengths of their prefixes, as the news that was read last had them. */
  #addresses: Set<string> = new Set();
  /** What is known may be wrong: the kernel has to be asked. */
  #unsure = false;
  #closed = false;

  /** @throws CareofError `kernel-refused` */
  constructor(options: UplinkNewsOptions) {
    this.#options = options;
    this.#readiness = new Readiness((error) => { this.#listener?.failed(error); });
    try {
      // Behind the beginning of the news: what it says that is older leads to a look too many, not to one too few.
      this.#ask();
    } catch (thrown) {
      this.close();
      throw thrown;
    }
  }

  watch(listener: UplinkListener): void {
    this.#listener = listener;
    this.#readiness.add(this.#news.descriptor, () => {
      try {
        this.#read(listener);
      } catch (thrown) {
        // Of the news, or of the kernel's answer to what it made necessary. Whoever is told looks, and asks once more.
        this.#unsure = true;
        listener.lost("news-missed", toCareofError(thrown));
      }
    });
  }

  look(): "uplink-down" | "uplink-gone" | null {
    const link = this.#unsure ? this.#ask() : findLink(this.#netlink, this.#options.uplink);
    if (link === null) return "uplink-gone";
    return link.up ? null : "uplink-down";
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#readiness.close();
    this.#news.close();
    this.#netlink.close();
  }

  #read(listener: UplinkListener): void {
    let replies: readonly (Reply | null)[];
    try {
      replies = this.#news.read();
    } catch (thrown) {
      const error = toCareofError(thrown);
      if (error.code !== "kernel-refused" || error.retryable) throw error;
      // The descriptor itself is of no use any more.
      this.#readiness.remove(this.#news.descriptor);
      listener.failed(error);
      return;
    }
    if (this.#unsure) this.#ask();
    for (const reply of replies) this.#heard(reply, listener);
  }

  /** What is known becomes what is. */
  #ask(): Link | null {
    const link = findLink(this.#netlink, this.#options.uplink);
    this.#addresses = this.#addressesOf(link);
    this.#known = link;
    this.#unsure = false;
    return link;
  }

  #addressesOf(link: Pick<Link, "index"> | null): Set<string> {
    return new Set(link === null ? [] : listAddresses(this.#netlink, link.index).map(written));
  }

  #heard(reply: Reply | null, listener: UplinkListener): void {
    if (reply === null) {
      this.#ask();
      listener.lost("news-missed");
    } else if (reply.type === RTM_NEWLINK || reply.type === RTM_DELLINK) this.#heardOfLink(decodeLink(reply), reply.type === RTM_NEWLINK, listener);
    else if (reply.type === RTM_NEWADDR || reply.type === RTM_DELADDR) this.#heardOfAddress(reply, listener);
  }

  #heardOfAddress(reply: Reply, listener: UplinkListener): void {
    const found = decodeAddress(reply);
    if (found === null) return;
    const own = found.address === this.#options.address;
    const here = found.device === this.#known?.index;
    if (!own && !here) return;
    if (reply.type === RTM_NEWADDR) {
      if (here) this.#addresses.add(written(found));
      listener.there();
    } else {
      if (here) this.#addresses.delete(written(found));
      if (own || this.#addresses.size === 0) listener.lost("address-gone");
    }
  }

  #heardOfLink(link: Link, there: boolean, listener: UplinkListener): void {
    const before = this.#known;
    const named = link.name === this.#options.uplink;
    if (!named && link.index !== before?.index) return;
    // Under another name it is not the uplink any more.
    this.#known = named && there ? link : null;
    const same = before?.index === this.#known?.index;
    if (!same) this.#addresses = this.#addressesOf(this.#known);
    if (before !== null && !same) listener.lost("uplink-gone");
    else if (before?.up === true && !link.up) listener.lost("uplink-down");
    if (this.#known?.up === true && !(same && before?.up === true)) listener.there();
  }
}

function written({ address, length }: Prefix): string {
  return `${address}/${String(length)}`;
}
