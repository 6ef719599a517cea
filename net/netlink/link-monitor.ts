import { decodeLink, RTM_DELLINK, RTM_NEWLINK, type Link } from "./links.js";
import { NetlinkNews, RTMGRP_LINK } from "./news.js";

/** `missed`: the kernel had more news than it could keep; list the links instead. */
export type LinkEvent = { readonly kind: "there" | "gone"; readonly link: Link } | { readonly kind: "missed" };

/** The kernel's news of interfaces in the network namespace in which it was made. */
export class LinkMonitor {
  readonly #news = new NetlinkNews(RTMGRP_LINK);

  /** Readable when there is news. */
  get descriptor(): number {
    return this.#news.descriptor;
  }

  /** Everything since the last call. @throws CareofError `kernel-refused`, `malformed-netlink` */
  read(): LinkEvent[] {
    return this.#news.read().flatMap((reply): LinkEvent[] => {
      if (reply === null) return [{ kind: "missed" }];
      if (reply.type !== RTM_NEWLINK && reply.type !== RTM_DELLINK) return [];
      return [{ kind: reply.type === RTM_NEWLINK ? "there" : "gone", link: decodeLink(reply) }];
    });
  }

  close(): void {
    this.#news.close();
  }
}
