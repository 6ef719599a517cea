import { existsSync, mkdirSync, readFileSync, rmdirSync, statfsSync, unlinkSync } from "node:fs";
import { endianness } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CareofError } from "../../model/errors.js";
import { EAGAIN, KernelError } from "../errno.js";
import { addressOf, bpf, close, mount, unmount } from "../syscall.js";
import { readObject, type BpfObject, type MapDefinition, type ProgramDefinition } from "./elf.js";
import { createMap, openPinnedMap, pinMap, type BpfMap } from "./maps.js";

const PROG_LOAD = 5;
const PROG_TEST_RUN = 10;
const SCHED_CLS = 3;
const BPF_FS_MAGIC = 0xcafe4a11;
const VERIFIER_LOG_BYTES = 1024 * 1024;
/** None: every helper that the programs call is open to all. */
const LICENSE = Buffer.from("none\0");
/** The verifier stops when a signal is waiting (EAGAIN), and finds it still there when that comes in a row. */
const LOAD_TRIES = 10;
/** How much of the verifier's log an error quotes: its end, where the reason stands. */
const LOG_LINES = 6;

let object: BpfObject | null = null;

/** The committed careof.o, found from this file whether it runs from the source tree's dist/ or an installed package. */
export function careofObject(): BpfObject {
  if (endianness() !== "LE") throw new CareofError("unsupported", "the BPF programs are built for little-endian machines");
  object ??= readObject(readFileSync(objectPath()));
  return object;
}

function objectPath(): string {
  const place = join("net", "bpf", "careof.o");
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, place))) return join(folder, place);
    if (folder === dirname(folder)) throw new CareofError("no-object", `${place} is missing from this installation`);
  }
}

/** Maps by name, from their pins where those fit, else new and pinned. */
export class PinnedMaps {
  readonly #folder: string;
  readonly #maps = new Map<string, BpfMap>();

  /** Mounts a BPF file system at `runDir`/bpf unless there is one. `runDir` is made. `only` names the maps that this end needs. */
  constructor(runDir: string, only: readonly string[], maxEntries: number) {
    this.#folder = join(runDir, "bpf");
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    if (!this.#isMounted()) mount("bpf", this.#folder, "bpf", "mode=0700");
    for (const definition of careofObject().maps) {
      if (only.includes(definition.name)) this.#maps.set(definition.name, this.#openOrCreate(sized(definition, maxEntries)));
    }
  }

  /** @throws CareofError `no-object` when careof.o has no such map */
  get(name: string): BpfMap {
    const found = this.#maps.get(name);
    if (found === undefined) throw new CareofError("no-object", `net/bpf/careof.o has no map "${name}"`);
    return found;
  }

  /** `keep` leaves the pins for the next process. */
  close({ keep }: { readonly keep: boolean }): void {
    for (const [name, map] of this.#maps) {
      map.close();
      if (!keep) unlinkSync(join(this.#folder, name));
    }
    this.#maps.clear();
    if (keep) return;
    unmount(this.#folder);
    rmdirSync(this.#folder);
  }

  #isMounted(): boolean {
    return statfsSync(this.#folder).type === BPF_FS_MAGIC;
  }

  #openOrCreate(definition: MapDefinition): BpfMap {
    const path = join(this.#folder, definition.name);
    const found = openPinnedMap(path, definition);
    if (found !== null) return found;
    if (existsSync(path)) unlinkSync(path);
    const made = createMap(definition);
    pinMap(made, path);
    return made;
  }
}

/** `counters` has one entry more, for what belongs to no address (ledger.ts). */
function sized(definition: MapDefinition, maxEntries: number): MapDefinition {
  return definition.maxEntries === 0 ? { ...definition, maxEntries: definition.name === "counters" ? maxEntries + 1 : maxEntries } : definition;
}

/**
 * Loads a program of careof.o and returns its descriptor. A filter keeps the program alive, the descriptor may be closed then.
 * @throws CareofError `kernel-refused`, with what the verifier said
 */
export function loadProgram(name: string, maps: Pick<PinnedMaps, "get">): number {
  const program = careofObject().programs.find((candidate) => candidate.name === name);
  if (program === undefined) throw new CareofError("no-object", `net/bpf/careof.o has no program "${name}"`);
  const instructions = withMaps(program, maps);
  let first = load(program.name, instructions, null);
  for (let attempt = 1; first === -EAGAIN && attempt < LOAD_TRIES; attempt++) first = load(program.name, instructions, null);
  if (first >= 0) return first;
  const log = Buffer.allocUnsafeSlow(VERIFIER_LOG_BYTES).fill(0);
  const second = load(program.name, instructions, log);
  if (second >= 0) return second;
  const lines = log.toString("latin1", 0, Math.max(0, log.indexOf(0))).trim().split("\n");
  const cause = new KernelError(-second, "BPF_PROG_LOAD", lines.slice(-LOG_LINES).join(" | "));
  throw new CareofError("kernel-refused", `the kernel refused BPF program ${name}: ${cause.message}`, { cause });
}

/** Instructions that load a map: its descriptor goes into the immediate, BPF_PSEUDO_MAP_FD into the source register. */
function withMaps({ instructions, mapReferences }: ProgramDefinition, maps: Pick<PinnedMaps, "get">): Buffer {
  const pseudoMapDescriptor = 1;
  const patched = Buffer.allocUnsafeSlow(instructions.length);
  patched.set(instructions);
  for (const { map, offset } of mapReferences) {
    patched.writeUInt8((patched.readUInt8(offset + 1) & 0x0f) | (pseudoMapDescriptor << 4), offset + 1);
    patched.writeInt32LE(maps.get(map).fd, offset + 4);
  }
  return patched;
}

function load(name: string, instructions: Buffer, log: Buffer | null): number {
  const attributes = Buffer.alloc(72);
  attributes.writeUInt32LE(SCHED_CLS, 0);
  attributes.writeUInt32LE(instructions.length / 8, 4);
  attributes.writeBigUInt64LE(addressOf(instructions), 8);
  attributes.writeBigUInt64LE(addressOf(LICENSE), 16);
  if (log !== null) {
    attributes.writeUInt32LE(1, 24);
    attributes.writeUInt32LE(log.length, 28);
    attributes.writeBigUInt64LE(addressOf(log), 32);
  }
  attributes.write(name.slice(0, 15), 48, "latin1");
  return bpf(PROG_LOAD, attributes);
}

/**
 * Runs a loaded program once over `frame` (Ethernet) and returns its verdict.
 * @throws CareofError `kernel-refused`
 */
export function testRun(program: number, frame: Buffer): number {
  const input = Buffer.allocUnsafeSlow(frame.length);
  input.set(frame);
  const attributes = Buffer.alloc(80);
  attributes.writeUInt32LE(program, 0);
  attributes.writeUInt32LE(input.length, 8);
  attributes.writeBigUInt64LE(addressOf(input), 16);
  attributes.writeUInt32LE(1, 32);
  const result = bpf(PROG_TEST_RUN, attributes);
  if (result < 0) throw new CareofError("kernel-refused", `the kernel refused to try a BPF program: ${new KernelError(-result, "BPF_PROG_TEST_RUN").message}`);
  return attributes.readUInt32LE(4);
}

/** Runs `work` with the program loaded, and lets go of it. */
export function withProgram<T>(name: string, maps: Pick<PinnedMaps, "get">, work: (program: number) => T): T {
  const program = loadProgram(name, maps);
  try {
    return work(program);
  } finally {
    close(program);
  }
}
