import { writeSync } from "node:fs";
import koffi from "koffi";
import { CareofError } from "../model/errors.js";
import { EAGAIN, EINTR, refused } from "./errno.js";

/**
 * libc through koffi: the calls that Node has no door to. Each is synchronous, runs on the calling thread (so that setns(2) holds for it), and throws
 * CareofError `kernel-refused` with errno as its cause. Buffers are only borrowed for the time of the call.
 */
const libc = koffi.load(null);

interface Libc {
  socket(family: number, type: number, protocol: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  setsockopt(fd: number, level: number, option: number, value: Uint8Array, length: number): number;
  getsockopt(fd: number, level: number, option: number, into: Uint8Array, length: Uint8Array): number;
  sendto(fd: number, data: Uint8Array, length: number, flags: number, address: Uint8Array | null, addressLength: number): number;
  recv(fd: number, into: Uint8Array, length: number, flags: number): number;
  read(fd: number, into: Uint8Array, length: number): number;
  write(fd: number, data: Uint8Array, length: number): number;
  ioctl(fd: number, request: number, argument: Uint8Array): number;
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  mount(source: string, target: string, type: string, flags: number, data: string | null): number;
  umount2(target: string, flags: number): number;
  setns(fd: number, kind: number): number;
  if_nametoindex(name: string): number;
  adjtimex(timex: Uint8Array): number;
  eventfd(initial: number, flags: number): number;
  flock(fd: number, operation: number): number;
  syscall(number: number, command: number, attributes: Uint8Array, size: number): number;
}

const c: Libc = {
  socket: libc.func("socket", "int", ["int", "int", "int"]),
  bind: libc.func("bind", "int", ["int", "void *", "uint"]),
  setsockopt: libc.func("setsockopt", "int", ["int", "int", "int", "void *", "uint"]),
  getsockopt: libc.func("getsockopt", "int", ["int", "int", "int", "void *", "void *"]),
  sendto: libc.func("sendto", "long", ["int", "void *", "size_t", "int", "void *", "uint"]),
  recv: libc.func("recv", "long", ["int", "void *", "size_t", "int"]),
  read: libc.func("read", "long", ["int", "void *", "size_t"]),
  write: libc.func("write", "long", ["int", "void *", "size_t"]),
  ioctl: libc.func("ioctl", "int", ["int", "ulong", "void *"]),
  open: libc.func("open", "int", ["str", "int", "uint"]),
  close: libc.func("close", "int", ["int"]),
  mount: libc.func("mount", "int", ["str", "str", "str", "ulong", "str"]),
  umount2: libc.func("umount2", "int", ["str", "int"]),
  setns: libc.func("setns", "int", ["int", "int"]),
  if_nametoindex: libc.func("if_nametoindex", "uint", ["str"]),
  adjtimex: libc.func("adjtimex", "int", ["void *"]),
  eventfd: libc.func("eventfd", "int", ["uint", "int"]),
  flock: libc.func("flock", "int", ["int", "int"]),
  syscall: libc.func("syscall", "long", ["long", "long", "void *", "ulong"]),
};

/** bpf(2) has no wrapper in libc, and its number depends on the machine. */
const BPF_NUMBER: Readonly<Record<string, number>> = { x64: 321, arm64: 280, riscv64: 280, loong64: 280, s390x: 351, ppc64: 361 };

function checked(result: number, what: string, call: string): number {
  if (result < 0) throw refused(what, koffi.errno(), call);
  return result;
}

export function socket(family: number, type: number, protocol: number): number {
  return checked(c.socket(family, type, protocol), "a socket", "socket");
}

export function bind(fd: number, address: Uint8Array): void {
  checked(c.bind(fd, address, address.length), "to bind a socket", "bind");
}

export function setSocketOption(fd: number, level: number, option: number, value: Uint8Array): void {
  checked(c.setsockopt(fd, level, option, value, value.length), "a socket option", "setsockopt");
}

/** Fills `into`. */
export function getSocketOption(fd: number, level: number, option: number, into: Uint8Array): void {
  const length = new Uint8Array(new Uint32Array([into.length]).buffer);
  checked(c.getsockopt(fd, level, option, into, length), "to read a socket option", "getsockopt");
}

/** Returns the bytes sent. */
export function sendTo(fd: number, data: Uint8Array, address: Uint8Array | null): number {
  return checked(c.sendto(fd, data, data.length, 0, address, address?.length ?? 0), "to send", "sendto");
}

const sendToLater = libc.func("sendto", "long", ["int", "void *", "size_t", "int", "void *", "uint"]);

/** As `sendTo` to whom the socket is connected or bound, on one of Node's pool threads. `data` must be left alone until then. */
export function sendInBackground(fd: number, data: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    sendToLater.async(fd, data, data.length, 0, null, 0, (error: Error | null, sent: number) => {
      if (error !== null) reject(new CareofError("kernel-refused", `sendto: ${error.message}`, { cause: error }));
      else if (sent < 0) reject(refused("to send", koffi.errno(), "sendto"));
      else resolve();
    });
  });
}

/** As `sendTo`, but where it would have to wait it sends nothing: false. @throws CareofError `kernel-refused` */
export function trySendTo(fd: number, data: Uint8Array, address: Uint8Array | null): boolean {
  const [dontWait, again, noBuffers] = [0x40, 11, 105];
  if (c.sendto(fd, data, data.length, dontWait, address, address?.length ?? 0) >= 0) return true;
  const errno = koffi.errno();
  if (errno === again || errno === noBuffers) return false;
  throw refused("to send", errno, "sendto");
}

/** Returns the length of the datagram, which is more than the buffer's when `flags` has MSG_TRUNC and it did not fit. */
export function receive(fd: number, into: Uint8Array, flags: number): number {
  return checked(c.recv(fd, into, into.length, flags), "to receive", "recv");
}

/** As `receive`, for a socket that does not block: the negative errno instead of an error, since "nothing there" is an ordinary answer and errors take their time. */
export function tryReceive(fd: number, into: Uint8Array): number {
  const length = c.recv(fd, into, into.length, 0);
  return length < 0 ? -koffi.errno() : length;
}

/** read(2) on a descriptor that does not block, in the same way. */
export function tryRead(fd: number, into: Uint8Array): number {
  const length = c.read(fd, into, into.length);
  return length < 0 ? -koffi.errno() : length;
}

/** send(2) on a socket, without waiting, likewise. `more`: it is not worth a packet before what follows at once. */
export function trySend(fd: number, data: Uint8Array, more: boolean): number {
  const [dontWait, noSignal, moreFollows] = [0x40, 0x4000, 0x8000];
  const length = c.sendto(fd, data, data.length, dontWait | noSignal | (more ? moreFollows : 0), null, 0);
  return length < 0 ? -koffi.errno() : length;
}

/** write(2) on a descriptor that does not block, likewise: the bytes written, or the negative errno. */
export function tryWrite(fd: number, data: Uint8Array): number {
  const length = c.write(fd, data, data.length);
  return length < 0 ? -koffi.errno() : length;
}

export function ioctl(fd: number, request: number, argument: Uint8Array, what: string): void {
  checked(c.ioctl(fd, request, argument), what, "ioctl");
}

/** `flags` as of open(2); O_CLOEXEC is added. */
export function open(path: string, flags: number): number {
  return checked(c.open(path, flags | 0o2000000, 0), `to open ${path}`, "open");
}

export function close(fd: number): void {
  checked(c.close(fd), "to close a descriptor", "close");
}

export function mount(source: string, target: string, type: string, data: string | null = null): void {
  checked(c.mount(source, target, type, 0, data), `to mount ${type} on ${target}`, "mount");
}

/** Detaches at once, even when something is still open below it. */
export function unmount(target: string): void {
  const detach = 2;
  checked(c.umount2(target, detach), `to unmount ${target}`, "umount2");
}

/** Moves the calling thread into the network namespace behind `fd`. */
export function setNetworkNamespace(fd: number): void {
  const newNetwork = 0x4000_0000;
  checked(c.setns(fd, newNetwork), "to enter the network namespace", "setns");
}

/** 0 when there is no such interface in this network namespace. */
export function interfaceIndex(name: string): number {
  return c.if_nametoindex(name);
}

/** @throws CareofError `no-link` */
export function requireInterface(name: string): number {
  const index = interfaceIndex(name);
  if (index === 0) throw new CareofError("no-link", `there is no interface "${name}"`, { retryable: true });
  return index;
}

/** syscall(2) for those whose arguments are all numbers. */
const numbers: (number: number, one: number, other: number, third: number) => number = libc.func("syscall", "long", ["long", "long", "long", "long"]);
const pollNow: (polled: Buffer, count: number, limitMs: number) => number = libc.func("poll", "int", ["void *", "ulong", "int"]);
const pollInBackground = libc.func("poll", "int", ["void *", "ulong", "int"]);

/**
 * poll(2) on one of Node's pool threads, without limit of time: `done` is called when a descriptor of `polled` (struct pollfd, 8 bytes each) is ready, with the
 * buffer filled in. The buffer must be left alone until then.
 */
export function poll(polled: Buffer, done: (failed: CareofError | null) => void): void {
  pollInBackground.async(polled, polled.length / 8, -1, (error: Error | null, ready: number) => {
    done(error !== null ? new CareofError("kernel-refused", `poll: ${error.message}`, { cause: error }) : ready < 0 ? refused("to wait", koffi.errno(), "poll") : null);
  });
}

/** Is `fd` readable now? */
export function readable(fd: number): boolean {
  const pollIn = 1;
  const polled = Buffer.alloc(8);
  polled.writeInt32LE(fd, 0);
  polled.writeInt16LE(pollIn, 4);
  checked(pollNow(polled, 1, 0), "to look at a descriptor", "poll");
  return (polled.readInt16LE(6) & pollIn) !== 0;
}

/** A descriptor of our own for what `fd` is to process `pid` (pidfd_open(2), pidfd_getfd(2), Linux 5.6; needs the right to trace that process). */
export function descriptorOf(pid: number, fd: number): number {
  const [pidfdOpen, pidfdGetfd] = [434, 438];
  const holder = checked(numbers(pidfdOpen, pid, 0, 0), `process ${String(pid)}`, "pidfd_open");
  try {
    return checked(numbers(pidfdGetfd, holder, fd, 0), `descriptor ${String(fd)} of process ${String(pid)}`, "pidfd_getfd");
  } finally {
    close(holder);
  }
}

const pipe2: (ends: Uint8Array, flags: number) => number = libc.func("pipe2", "int", ["void *", "int"]);
const fcntl: (fd: number, command: number, argument: number) => number = libc.func("fcntl", "int", ["int", "int", "int"]);
const spliceNow: (from: number, fromOffset: null, to: number, toOffset: null, length: number, flags: number) => number =
  libc.func("splice", "long", ["int", "void *", "int", "void *", "size_t", "uint"]);

/** A pipe that holds `bytes`, or what the kernel allows; neither end blocks. */
export function pipe(bytes: number): { readonly reading: number; readonly writing: number } {
  const [nonBlocking, closeOnExec, setPipeSize] = [0o4000, 0o2000000, 1031];
  const ends = Buffer.alloc(8);
  checked(pipe2(ends, nonBlocking | closeOnExec), "a pipe", "pipe2");
  const [reading, writing] = [ends.readInt32LE(0), ends.readInt32LE(4)];
  // Of a user with many pipes the kernel gives less: a smaller one carries all the same.
  fcntl(writing, setPipeSize, bytes);
  return { reading, writing };
}

/** Another descriptor of the same open file (fcntl(2) F_DUPFD_CLOEXEC). */
export function duplicate(fd: number): number {
  const duplicateCloseOnExec = 1030;
  return checked(fcntl(fd, duplicateCloseOnExec, 0), "another descriptor", "fcntl");
}

/** splice(2), one end of it a pipe; never waits. Returns the bytes moved, 0 at the end of what is read, or the negative errno. */
export function trySplice(from: number, to: number, bytes: number): number {
  const [move, nonBlocking] = [1, 2];
  const moved = spliceNow(from, null, to, null, bytes, move | nonBlocking);
  return moved < 0 ? -koffi.errno() : moved;
}

/** poll(2) on the calling thread, which waits as long as it takes. A signal ends it with nothing ready. @throws CareofError `kernel-refused` */
export function pollHere(polled: Buffer): void {
  if (pollNow(polled, polled.length / 8, -1) >= 0) return;
  const errno = koffi.errno();
  if (errno !== EINTR) throw refused("to wait", errno, "poll");
  polled.fill(0);
}

/** A descriptor that becomes readable when 8 bytes are written to it (eventfd(2)). */
export function eventDescriptor(): number {
  const nonBlocking = 0o4000;
  const closeOnExec = 0o2000000;
  return checked(c.eventfd(0, nonBlocking | closeOnExec), "an event descriptor", "eventfd");
}

/** Makes what waits for an event descriptor look. @throws an ErrnoException when it is not open */
export function ring(eventDescriptor: number): void {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  writeSync(eventDescriptor, one);
}

/** As flock(2): it belongs to the open file and goes with its last descriptor. "waiting": until whoever holds it lets go. */
const LOCKS = { shared: 1 | 4, exclusive: 2 | 4, "exclusive, waiting": 2 } as const;

/** False when another open file's lock is in the way. */
export function lock(fd: number, how: keyof typeof LOCKS): boolean {
  const result = c.flock(fd, LOCKS[how]);
  if (result < 0 && koffi.errno() === EAGAIN) return false;
  checked(result, "to lock a file", "flock");
  return true;
}

/** Does the kernel hold its clock for synchronised (adjtimex(2))? Someone has to tell it: chrony, ntpd, systemd-timesyncd. */
export function clockIsSynchronised(): boolean {
  const timeError = 5;
  return checked(c.adjtimex(Buffer.alloc(256)), "to read its clock's state", "adjtimex") !== timeError;
}

/**
 * bpf(2). Returns its result, negative errno on failure: some callers expect one.
 * `attributes` holds pointers to other buffers (see `addressOf`), which the caller keeps referenced.
 */
export function bpf(command: number, attributes: Uint8Array): number {
  const number = BPF_NUMBER[process.arch];
  if (number === undefined) throw new CareofError("unsupported", `bpf(2) is not known on ${process.arch}`);
  const result = c.syscall(number, command, attributes, attributes.length);
  return result < 0 ? -koffi.errno() : result;
}

/** Where the buffer lies, for a field that holds a pointer. True as long as the buffer is referenced. */
export function addressOf(buffer: Uint8Array): bigint {
  return koffi.address(buffer);
}
