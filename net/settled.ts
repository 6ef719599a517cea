/**
 * Runs synchronous work now, in the caller's turn of the event loop; what it throws becomes the promise's. For interfaces that are asynchronous because another
 * driver may need it, where ours must not be interleaved with anything.
 */
export function settled(work: () => void): Promise<void> {
  return new Promise((resolve) => {
    work();
    resolve();
  });
}
