import { milliseconds } from "./picture.js";
import type { DemoMove, DemoResult, Paper } from "./record.js";

/** The table at the end, beside the paper's figure. */
export function summary(result: DemoResult, paper: Paper): string {
  const rows: readonly (readonly [string, (move: DemoMove) => string, string])[] = [
    ["longest time without a byte (TCP)", (move) => milliseconds(move.tcpStallMs), `${String(paper.silence.toSecond - paper.silence.fromSecond)} s`],
    ["guest halted", (move) => milliseconds(move.pauseMs), ""],
    ["gap down / up", (move) => `${milliseconds(move.gapDownMs)} / ${milliseconds(move.gapUpMs)}`, ""],
    ["longest silence seen, down", (move) => milliseconds(move.serviceGapDownMs), ""],
    ["longest silence seen, up", (move) => milliseconds(move.serviceGapUpMs), ""],
    ["UDP lost down", (move) => `${String(move.lostDown)} of ${String(move.sentDown)}`, ""],
    ["UDP lost up", (move) => `${String(move.lostUp)} of ${String(move.sentUp)}`, ""],
    ["duplicated / reordered", (move) => `${String(move.duplicated)} / ${String(move.reordered)}`, ""],
  ];
  const table = [["", ...result.moves.map((move) => `${move.from} → ${move.to}`), "paper, 2009"], ...rows.map(([name, of, figure]) => [name, ...result.moves.map(of), figure])];
  const widths = table[0]?.map((_cell, column) => Math.max(...table.map((row) => (row[column] ?? "").length))) ?? [];
  const lines = table.map((row) => row.map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart((widths[column] ?? 0) + 3))).join("").trimEnd());
  const megabytes = (result.tcp.bytes / 1e6).toFixed(1);
  return `${lines.join("\n")}\n\nTCP: ${result.tcp.survived ? "every session survived both moves" : "A SESSION BROKE"}; ${megabytes} MB in all.\n`;
}
