import type { Socket } from "node:net";
import { CareofError } from "../model/errors.js";
import { EPERM, errnoOf } from "./errno.js";
import { duplicate, setSocketOption } from "./syscall.js";

/**
 * Another descriptor of a socket that Node holds, the caller's to close: Node has no door to its own. What Node reads of the socket is not read by it, so nobody may have
 * begun to. @throws CareofError `unsupported` (this Node shows none, or the socket is closed), `kernel-refused`
 */
export function descriptorOfSocket(socket: Socket): number {
  const handle: unknown = Reflect.get(socket, "_handle");
  const fd: unknown = typeof handle === "object" && handle !== null ? Reflect.get(handle, "fd") : null;
  if (typeof fd !== "number" || fd < 0) throw new CareofError("unsupported", "a socket's descriptor is not to be had");
  return duplicate(fd);
}

/** How much may wait to be sent: SO_SNDBUFFORCE, or without CAP_NET_ADMIN as much of it as `net.core.wmem_max` allows. @throws CareofError `kernel-refused` */
export function sendBuffer(descriptor: number, bytes: number): void {
  const [socketLevel, sendBufferForce, sendBufferOption] = [1, 32, 7];
  const value = Buffer.alloc(4);
  value.writeInt32LE(bytes);
  try {
    setSocketOption(descriptor, socketLevel, sendBufferForce, value);
  } catch (thrown) {
    if (errnoOf(thrown) !== EPERM) throw thrown;
    setSocketOption(descriptor, socketLevel, sendBufferOption, value);
  }
}
