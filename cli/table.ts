import { plain } from "./terminal.js";

const BETWEEN = "  ";
/** No column is cut below this. */
const NARROWEST = 6;

/**
 * Left-aligned columns under a heading, the last one without padding. With `columns` the widest ones are cut (`…`) until a line fits; without,
 * nothing is cut, so that a script sees whole names. Control characters become `?`.
 */
export function table(heading: readonly string[], rows: readonly (readonly string[])[], columns: number | null): string {
  const cells = [heading, ...rows].map((row) => row.map(plain));
  const widths = heading.map((_, at) => Math.max(...cells.map((row) => (row[at] ?? "").length)));
  if (columns !== null) fit(widths, columns);
  return cells.map((row) => `${row.map((cell, at) => cut(cell, widths[at] ?? 0)).join(BETWEEN).trimEnd()}\n`).join("");
}

function fit(widths: number[], columns: number): void {
  const total = (): number => widths.reduce((sum, width) => sum + width, 0) + BETWEEN.length * (widths.length - 1);
  while (total() > columns) {
    const widest = widths.indexOf(Math.max(...widths));
    const width = widths[widest] ?? 0;
    if (width <= NARROWEST) return;
    widths[widest] = width - 1;
  }
}

function cut(cell: string, width: number): string {
  return cell.length <= width ? cell.padEnd(width) : `${cell.slice(0, width - 1)}…`;
}

/** `name   value` lines below one another, of which those without a value are left out. */
export function facts(pairs: readonly (readonly [name: string, value: string | null])[]): string {
  const shown = pairs.filter((pair): pair is readonly [string, string] => pair[1] !== null);
  const width = Math.max(...shown.map(([name]) => name.length));
  return shown.map(([name, value]) => `  ${name.padEnd(width)}  ${plain(value)}\n`).join("");
}
