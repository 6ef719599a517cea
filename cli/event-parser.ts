import { CareofError } from "../model/errors.js";

export interface ServerSentEvent {
  readonly event: string;
  readonly data: string;
}

/** Characters of one event. */
const MAX_EVENT = 1 << 20;

/** Server-sent events (WHATWG HTML §9.2.6) out of pieces of text that break anywhere. */
export class EventParser {
  #rest = "";
  #event = "";
  #data: string[] = [];
  #size = 0;
  #afterReturn = false;

  /** The events that this piece completes. @throws CareofError `bad-reply` for an event without end */
  push(piece: string): ServerSentEvent[] {
    const found: ServerSentEvent[] = [];
    let text = this.#rest + (this.#afterReturn && piece.startsWith("\n") ? piece.slice(1) : piece);
    if (piece !== "") this.#afterReturn = false;
    for (let end = text.search(/[\r\n]/); end >= 0; end = text.search(/[\r\n]/)) {
      const done = this.#line(text.slice(0, end));
      if (done !== null) found.push(done);
      const pair = text.startsWith("\r\n", end);
      this.#afterReturn = !pair && text[end] === "\r" && end === text.length - 1;
      text = text.slice(end + (pair ? 2 : 1));
    }
    this.#rest = text;
    if (this.#size + text.length > MAX_EVENT) throw new CareofError("bad-reply", "the home agent sent an event that does not end");
    return found;
  }

  #line(line: string): ServerSentEvent | null {
    if (line === "") {
      const done = this.#data.length === 0 ? null : { event: this.#event === "" ? "message" : this.#event, data: this.#data.join("\n") };
      this.#event = "";
      this.#data = [];
      this.#size = 0;
      return done;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    this.#size += value.length;
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
    return null;
  }
}
