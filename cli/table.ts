import { plain } from "./terminal.js";

const BETWEEN = "  ";
/** No column is cut below this. */
const NARROWEST = 6;

/**
 * Left-aligned columns under a heading, the last one without padding. With `columns` the widest ones are cut (`…`) until a line fits; without,
 * nothing is cut, so that a script sees whole names. Before a column is cut those of `expendable` go, the first one first. Control characters become `?`.
 */
export function table(heading: readonly string[], rows: readonly (readonly string[])[], columns: number | null, expendable: readonly string[] = []): string {
  let cells = [heading, ...rows].map((row) => row.map(plain));
  for (const name of expendable) {
    if (columns === null || natural(cells) <= columns) break;
    const at = cells[0]?.indexOf(name) ?? -1;
    if (at >= 0) cells = cells.map((row) => row.filter((_, i) => i !== at));
  }
  const widths = widthsOf(cells);
  if (columns !== null) fit(widths, columns);
  return cells.map((row) => `${row.map((cell, at) => cut(cell, widths[at] ?? 0)).join(BETWEEN).trimEnd()}\n`).join("");
}

function widthsOf(cells: readonly (readonly string[])[]): number[] {
  return (cells[0] ?? []).map((_, at) => Math.max(...cells.map((row) => (row[at] ?? "").length)));
}

/** Characters of a line of which nothing is cut. */
function natural(cells: readonly (readonly string[])[]): number {
  const widths = widthsOf(cells);
  return widths.reduce((sum, width) => sum + width, 0) + BETWEEN.length * (widths.length - 1);
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
