import type { AddressInfo, Server } from "node:net";
import type { Endpoint } from "../model/config.js";
import { CareofError } from "../model/errors.js";

/** The address that it really has, port 0 having become one. @throws CareofError `cannot-listen` */
export function listen(server: Server, { address, port }: Endpoint, forWhom: string): Promise<AddressInfo> {
  return new Promise((resolve, reject) => {
    const failed = (cause: Error): void => {
      reject(new CareofError("cannot-listen", `cannot listen for ${forWhom} on ${address}:${String(port)}: ${cause.message}`, { cause }));
    };
    server.once("error", failed);
    server.listen(port, address, () => {
      server.off("error", failed);
      const bound = server.address();
      if (bound === null || typeof bound === "string") failed(new Error("no address"));
      else resolve(bound);
    });
  });
}
