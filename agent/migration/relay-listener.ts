import { createServer as createTcpServer, type AddressInfo, type Server as TcpServer, type Socket } from "node:net";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { descriptorOfSocket } from "../../net/socket-descriptor.js";
import { WAY_TOKEN_BYTES } from "../../proto/relay-framing.js";
import { CareofError, toCareofError } from "../../model/errors.js";
import { millis, type MigrationId } from "../../model/ids.js";
import { RELAY_TLS } from "./relay-connection.js";

/** How long a connection may take to authenticate. */
export const HANDSHAKE_MS = millis(3000);

/** What a channel's way (way-source.ts) begins with, before its token; TLS begins with 0x16 (RFC 5246 §6.2.1). */
export const WAY_FIRST_BYTE = 0x01;

/** Connections that have not authenticated yet, beside as many as the moves that are expected open: all of them may come from one host, and at once. */
export interface StrangerLimits {
  readonly perAddress: number;
  /** Of all addresses together. */
  readonly all: number;
}

const STRANGERS: StrangerLimits = { perAddress: 128, all: 512 };

export interface RelayListenerOptions {
  readonly address: string;
  /** 0: any, another one each time that a move is expected and none was. */
  readonly port: number;
  /** Somebody failed to authenticate, or gave way to others. For the log. */
  readonly onIntruder?: (detail: string) => void;
  readonly strangers?: Partial<StrangerLimits>;
}

interface Expected {
  readonly secret: Uint8Array;
  readonly connections: number;
  readonly accept: (socket: TLSSocket) => void;
}

export interface Place {
  readonly address: string;
  readonly port: number;
  /** Nobody is let in for this move any more; who was is not touched. Idempotent. */
  leave(): void;
  /**
   * A connection from `address` that begins with WAY_FIRST_BYTE and `token` is handed to `arrived`, once, as a descriptor of which nothing behind the token has been read. Nobody is waited for any more after `leave`.
   */
  expectWay(token: Uint8Array, address: string, arrived: (descriptor: number) => void): void;
}

/**
 * The one place of a host where moves arrive. The name that a connection authenticates by (RFC 4279's identity, under the secret of that move) says which move it belongs to. Listens while a move is
 * expected, so that a host to which nothing comes has no open port.
 *
 * A connection that has not authenticated is a stranger's: there are so many places for them, of which the oldest stranger gives his to the newest, so that those who connect and say nothing
 * keep no source out, whose handshake takes some round trips. There are as many more of them as the expected moves have connections, so that sources alone, however many they open at once, show none of their own out. (To turn the newest away
 * instead would let a silent stranger keep his place.)
 */
export class RelayListener {
  readonly #options: RelayListenerOptions;
  readonly #limits: StrangerLimits;
  /** By migration: a connection names one that need not be well formed. */
  readonly #expected = new Map<string, Expected>();
  /** By token, hexadecimal. */
  readonly #ways = new Map<string, { readonly migration: MigrationId; readonly address: string; readonly arrived: (descriptor: number) => void }>();
  readonly #strangers = new Map<string, Socket>();
  readonly #named = new WeakMap<TLSSocket, Expected>();
  readonly #tls: Server;
  #listening: { readonly server: TcpServer; readonly port: Promise<number> } | null = null;

  constructor(options: RelayListenerOptions) {
    this.#options = options;
    this.#limits = { ...STRANGERS, ...options.strangers };
    this.#tls = createServer({
      ...RELAY_TLS, dhparam: "auto", honorCipherOrder: true, handshakeTimeout: HANDSHAKE_MS,
      pskCallback: (socket, identity) => {
        const expected = this.#expected.get(identity);
        if (expected === undefined) return null;
        this.#named.set(socket, expected);
        return expected.secret;
      },
    }, (socket) => { this.#authenticated(socket); });
    this.#tls.on("tlsClientError", (cause, socket) => {
      // After a time-out Node leaves the connection open.
      socket.destroy();
      options.onIntruder?.(cause.message);
    });
  }

  /**
   * `connections`: so many come by this move, of all channels and their ways. It bounds what waits to be authenticated, and not who is let in.
   * @throws CareofError `relay-failed` when the address cannot be listened on, or the move is expected already
   */
  async expect(migration: MigrationId, secret: Uint8Array, connections: number, accept: (socket: TLSSocket) => void): Promise<Place> {
    if (this.#expected.has(migration)) throw new CareofError("relay-failed", `${migration} is expected already`);
    this.#expected.set(migration, { secret, connections, accept });
    this.#listening ??= this.#listen();
    try {
      const port = await this.#listening.port;
      return {
        address: this.#options.address, port, leave: () => { this.#leave(migration); },
        expectWay: (token, from, arrived) => { if (this.#expected.has(migration)) this.#ways.set(Buffer.from(token).toString("hex"), { migration, address: from, arrived }); },
      };
    } catch (thrown) {
      this.#leave(migration);
      throw thrown;
    }
  }

  #leave(migration: MigrationId): void {
    for (const [token, { migration: whose }] of [...this.#ways]) if (whose === migration) this.#ways.delete(token);
    if (!this.#expected.delete(migration) || this.#expected.size > 0) return;
    this.#listening?.server.close();
    this.#listening = null;
    for (const stranger of this.#strangers.values()) stranger.destroy();
  }

  #listen(): { readonly server: TcpServer; readonly port: Promise<number> } {
    const { address, port } = this.#options;
    // A source that has said its last word is not hung up on before we have heeded it: RELEASE may have to wait here for what comes by other connections, and the source gives up what it still carries when it is hung up on.
    const server = createTcpServer({ allowHalfOpen: true }, (socket) => { this.#arrived(socket); });
    return {
      server,
      port: new Promise((resolve, reject) => {
        server.on("error", (cause: Error) => {
          // It listens, and one connection could not be taken (no descriptors left, say): whoever it was tries again, or fails alone.
          if (server.listening) {
            this.#options.onIntruder?.(`a connection could not be taken: ${cause.message}`);
            return;
          }
          // The next move tries again.
          if (this.#listening?.server === server) this.#listening = null;
          reject(new CareofError("relay-failed", `cannot listen for the relay on ${address}: ${cause.message}`, { cause }));
        });
        server.listen(port, address, () => {
          const bound: AddressInfo | string | null = server.address();
          resolve(bound !== null && typeof bound === "object" ? bound.port : port);
        });
      }),
    };
  }

  #arrived(socket: Socket): void {
    const name = nameOf(socket);
    this.#strangers.set(name, socket);
    socket.once("close", () => { this.#strangers.delete(name); });
    // What a stranger's connection breaks by is nobody's matter; without a listener it would end the process.
    socket.on("error", () => undefined);
    const fromThere = [...this.#strangers].filter(([, stranger]) => stranger.remoteAddress === socket.remoteAddress);
    const sources = [...this.#expected.values()].reduce((sum, { connections }) => sum + connections, 0);
    if (fromThere.length > this.#limits.perAddress + sources) this.#showOut(fromThere[0]);
    else if (this.#strangers.size > this.#limits.all + sources) this.#showOut([...this.#strangers][0]);
    if (this.#ways.size === 0) this.#tls.emit("connection", socket);
    else this.#sort(socket, name);
  }

  /** TLS, or one of the ways that are waited for. Who says nothing goes as soon as in a handshake. */
  #sort(socket: Socket, name: string): void {
    const silent = (): void => {
      socket.destroy();
      this.#options.onIntruder?.(`${name} did not say in time who it is`);
    };
    const look = (): void => {
      // Of TLS, too, the first message is longer.
      const begins: unknown = socket.read(1 + WAY_TOKEN_BYTES);
      if (!(begins instanceof Buffer)) {
        if (socket.readableEnded) silent();
        return;
      }
      socket.off("readable", look).off("end", look).off("timeout", silent).setTimeout(0);
      if (begins[0] === WAY_FIRST_BYTE) this.#takeWay(socket, name, begins);
      else {
        socket.unshift(begins);
        this.#tls.emit("connection", socket);
      }
    };
    socket.on("readable", look).on("end", look).on("timeout", silent).setTimeout(HANDSHAKE_MS);
  }

  /** The source writes its token at once, and nothing behind it before it is asked to. */
  #takeWay(socket: Socket, name: string, begins: Buffer): void {
    const token = begins.subarray(1).toString("hex");
    const expected = begins.length === 1 + WAY_TOKEN_BYTES && socket.readableLength === 0 ? this.#ways.get(token) : undefined;
    this.#strangers.delete(name);
    try {
      if (expected === undefined || expected.address !== socket.remoteAddress) throw new CareofError("bad-token", `${name} came with a stream, and was not expected`);
      this.#ways.delete(token);
      const descriptor = descriptorOfSocket(socket);
      socket.destroy();
      expected.arrived(descriptor);
    } catch (thrown) {
      socket.destroy();
      this.#options.onIntruder?.(toCareofError(thrown).message);
    }
  }

  #showOut(oldest: readonly [string, Socket] | undefined): void {
    if (oldest === undefined) return;
    const [name, socket] = oldest;
    this.#strangers.delete(name);
    socket.destroy();
    this.#options.onIntruder?.(`${name} had not authenticated, and gave way to others`);
  }

  #authenticated(socket: TLSSocket): void {
    this.#strangers.delete(nameOf(socket));
    const expected = this.#named.get(socket);
    // A resumed session names nobody, and that move may have left meanwhile.
    if (expected === undefined || ![...this.#expected.values()].includes(expected)) socket.destroy();
    else expected.accept(socket);
  }
}

function nameOf({ remoteAddress, remotePort }: Pick<Socket, "remoteAddress" | "remotePort">): string {
  return `${remoteAddress ?? ""}:${String(remotePort)}`;
}
