import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { Readable } from "node:stream";

export interface PatientRequest {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | null;
  /** Ends the waiting. */
  readonly signal: AbortSignal;
}

/** As `fetch`, which gives an answer up that does not begin within five minutes: this one waits as long as `signal` lets it. Follows no redirection. Rejects with the reason of `signal`, or the error of the connection. */
export async function patientFetch(url: URL, { method, headers, body, signal }: PatientRequest): Promise<Response> {
  signal.throwIfAborted();
  const send = url.protocol === "https:" ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    const request = send(url, { method, headers, signal }, (message) => {
      resolve(new Response(Readable.toWeb(message), { status: message.statusCode ?? 0 }));
    });
    request.once("error", (error) => { reject(signal.aborted && signal.reason instanceof Error ? signal.reason : error); });
    request.end(body ?? undefined);
  });
}
