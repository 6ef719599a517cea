import { CareofError } from "../../model/errors.js";

/** A map as the object file defines it (struct map_definition in layout.h). */
export interface MapDefinition {
  readonly name: string;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  /** 0: as many as the instance allows. */
  readonly maxEntries: number;
  readonly flags: number;
}

export interface ProgramDefinition {
  readonly name: string;
  /** 8 bytes each. */
  readonly instructions: Buffer;
  /** Where instructions load the descriptor of a map: byte offset and the map's name. */
  readonly mapReferences: readonly { readonly offset: number; readonly map: string }[];
}

export interface BpfObject {
  readonly maps: readonly MapDefinition[];
  readonly programs: readonly ProgramDefinition[];
}

interface Section {
  readonly name: string;
  readonly type: number;
  /** Index of the section that this one speaks about: strings of a symbol table, target of relocations. */
  readonly link: number;
  readonly info: number;
  readonly entrySize: number;
  readonly bytes: Buffer;
}

interface SymbolEntry {
  readonly name: string;
  readonly kind: number;
  readonly section: number;
  readonly value: number;
  readonly size: number;
}

/* ELF-64 (System V ABI, generic part), of which a BPF object uses little. */
const MACHINE_BPF = 247;
const FILE_HEADER = 64;
const SECTION_HEADER = 64;
const SYMBOL = 24;
const RELOCATION = 16;
const SHT_SYMTAB = 2;
const SHT_NOBITS = 8;
const SHT_REL = 9;
const STT_OBJECT = 1;
const STT_FUNC = 2;
const R_BPF_64_64 = 1;
const LOAD_IMMEDIATE_64 = 0x18;

const MAP_DEFINITION = 20;
const INSTRUCTION = 8;

/** Larger than any object of ours; a bound for what is read at all. */
const MAX_BYTES = 4 * 1024 * 1024;
const MAX_SECTIONS = 1024;

function malformed(why: string): CareofError {
  return new CareofError("malformed-object", `not a BPF object that can be loaded: ${why}`);
}

/** The part of `bytes`, or an error that says what was expected there. */
function slice(bytes: Buffer, offset: number, length: number, what: string): Buffer {
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset + length > bytes.length) throw malformed(`${what} lies outside of the file`);
  return bytes.subarray(offset, offset + length);
}

/** A 64-bit field as a number; what is larger than any file becomes infinite and then fails the bounds check. */
function u64(bytes: Buffer, offset: number): number {
  const value = bytes.readBigUInt64LE(offset);
  return value > BigInt(MAX_BYTES) ? Infinity : Number(value);
}

function stringAt(strings: Buffer, offset: number): string {
  const end = strings.indexOf(0, offset);
  if (offset >= strings.length || end < 0) throw malformed("a name lies outside of its table");
  return strings.toString("utf8", offset, end);
}

/**
 * Reads a relocatable little-endian ELF-64 file of clang's BPF back end: maps from section `maps`, programs from section `tc`.
 * Calls between functions, and data sections, are not supported and refused.
 * @throws CareofError `malformed-object`
 */
export function readObject(bytes: Buffer): BpfObject {
  if (bytes.length > MAX_BYTES) throw malformed(`${String(bytes.length)} bytes are too many`);
  const sections = readSections(bytes);
  const symbols = readSymbols(sections);
  const mapSection = sections.findIndex(({ name }) => name === "maps");
  const codeSection = sections.findIndex(({ name }) => name === "tc");
  const code = sections[codeSection];
  if (code === undefined) throw malformed("it has no section tc");

  const mapBytes = sections[mapSection]?.bytes ?? Buffer.alloc(0);
  const maps = symbols.filter((symbol) => symbol.kind === STT_OBJECT && symbol.section === mapSection).map((symbol) => readMap(symbol, mapBytes));
  const references = readReferences(sections, codeSection, symbols, mapSection);
  const programs = symbols
    .filter((symbol) => symbol.kind === STT_FUNC && symbol.section === codeSection)
    .map((symbol) => readProgram(symbol, code.bytes, references));
  return { maps, programs };
}

function readSections(bytes: Buffer): Section[] {
  const header = slice(bytes, 0, FILE_HEADER, "the file header");
  if (header.readUInt32BE(0) !== 0x7f454c46) throw malformed("it is not ELF");
  if (header[4] !== 2 || header[5] !== 1) throw malformed("it is not 64-bit little-endian");
  if (header.readUInt16LE(18) !== MACHINE_BPF) throw malformed(`it is for machine ${String(header.readUInt16LE(18))}, not BPF`);
  const count = header.readUInt16LE(60);
  if (count === 0 || count > MAX_SECTIONS || header.readUInt16LE(58) !== SECTION_HEADER) throw malformed("its section table is of unknown shape");
  const table = slice(bytes, u64(header, 40), count * SECTION_HEADER, "the section table");

  const raw = Array.from({ length: count }, (_, index) => {
    const entry = table.subarray(index * SECTION_HEADER, (index + 1) * SECTION_HEADER);
    const type = entry.readUInt32LE(4);
    return {
      nameOffset: entry.readUInt32LE(0),
      type,
      link: entry.readUInt32LE(40),
      info: entry.readUInt32LE(44),
      entrySize: u64(entry, 56),
      bytes: type === SHT_NOBITS || type === 0 ? Buffer.alloc(0) : slice(bytes, u64(entry, 24), u64(entry, 32), `section ${String(index)}`),
    };
  });
  const names = raw[header.readUInt16LE(62)]?.bytes;
  if (names === undefined) throw malformed("its sections have no names");
  return raw.map(({ nameOffset, ...section }) => ({ ...section, name: section.type === 0 ? "" : stringAt(names, nameOffset) }));
}

function readSymbols(sections: readonly Section[]): SymbolEntry[] {
  const table = sections.find(({ type }) => type === SHT_SYMTAB);
  if (table === undefined) throw malformed("it has no symbol table");
  const strings = sections[table.link]?.bytes;
  if (strings === undefined || table.entrySize !== SYMBOL || table.bytes.length % SYMBOL !== 0) throw malformed("its symbol table is of unknown shape");
  return Array.from({ length: table.bytes.length / SYMBOL }, (_, index) => {
    const entry = table.bytes.subarray(index * SYMBOL, (index + 1) * SYMBOL);
    return {
      name: stringAt(strings, entry.readUInt32LE(0)),
      kind: entry.readUInt8(4) & 15,
      section: entry.readUInt16LE(6),
      value: u64(entry, 8),
      size: u64(entry, 16),
    };
  });
}

function readMap(symbol: SymbolEntry, bytes: Buffer): MapDefinition {
  if (symbol.size !== MAP_DEFINITION) throw malformed(`map ${symbol.name} is not defined by ${String(MAP_DEFINITION)} bytes`);
  const fields = slice(bytes, symbol.value, MAP_DEFINITION, `map ${symbol.name}`);
  return {
    name: symbol.name,
    type: fields.readUInt32LE(0),
    keySize: fields.readUInt32LE(4),
    valueSize: fields.readUInt32LE(8),
    maxEntries: fields.readUInt32LE(12),
    flags: fields.readUInt32LE(16),
  };
}

function readReferences(sections: readonly Section[], codeSection: number, symbols: readonly SymbolEntry[], mapSection: number): ReadonlyMap<number, string> {
  const found = new Map<number, string>();
  for (const { bytes, info, type } of sections) {
    if (type !== SHT_REL || info !== codeSection) continue;
    if (bytes.length % RELOCATION !== 0) throw malformed("its relocations are of unknown shape");
    for (let at = 0; at < bytes.length; at += RELOCATION) {
      const kind = bytes.readUInt32LE(at + 8);
      const symbol = symbols[bytes.readUInt32LE(at + 12)];
      if (kind !== R_BPF_64_64 || symbol?.section !== mapSection || symbol.kind !== STT_OBJECT) {
        throw malformed(`relocation ${String(kind)} to ${symbol?.name ?? "nothing"} is not the load of a map`);
      }
      found.set(u64(bytes, at), symbol.name);
    }
  }
  return found;
}

function readProgram(symbol: SymbolEntry, code: Buffer, references: ReadonlyMap<number, string>): ProgramDefinition {
  if (symbol.size === 0 || symbol.size % INSTRUCTION !== 0 || symbol.value % INSTRUCTION !== 0) throw malformed(`program ${symbol.name} is cut off`);
  const instructions = slice(code, symbol.value, symbol.size, `program ${symbol.name}`);
  const mapReferences: { offset: number; map: string }[] = [];
  for (const [place, map] of references) {
    const offset = place - symbol.value;
    if (offset < 0 || offset >= symbol.size) continue;
    if (offset % INSTRUCTION !== 0 || offset + 2 * INSTRUCTION > symbol.size || instructions[offset] !== LOAD_IMMEDIATE_64) {
      throw malformed(`program ${symbol.name} does not load map ${map} where it says so`);
    }
    mapReferences.push({ offset, map });
  }
  return { name: symbol.name, instructions, mapReferences };
}
