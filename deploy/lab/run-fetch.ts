import { createInterface } from "node:readline";
import { z } from "zod";

/**
 * A program of its own, started in a namespace: makes HTTP requests there for a program that is elsewhere. Each line of input is a request, each line
 * of output an answer with its id.
 */
const requestSchema = z.object({ id: z.number(), method: z.string(), url: z.string(), body: z.string().nullable() });

async function answer({ id, method, url, body }: z.infer<typeof requestSchema>): Promise<object> {
  try {
    const response = await fetch(url, body === null ? { method } : { method, body, headers: { "content-type": "application/json" } });
    return { id, status: response.status, text: await response.text(), error: null };
  } catch (thrown) {
    return { id, status: 0, text: "", error: thrown instanceof Error ? thrown.message : String(thrown) };
  }
}

createInterface({ input: process.stdin }).on("line", (line) => {
  answer(requestSchema.parse(JSON.parse(line))).then(
    (said) => { process.stdout.write(`${JSON.stringify(said)}\n`); },
    (thrown: unknown) => { throw thrown; },
  );
});
