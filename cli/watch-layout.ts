import { stateOf } from "./commands/hosts.js";
import { vmTable } from "./commands/vms.js";
import { progressLine } from "./migration-progress.js";
import type { HostReply, MigrationReply, VmReply } from "./replies.js";
import { plain } from "./terminal.js";

export interface Picture {
  readonly hosts: readonly HostReply[];
  readonly vms: readonly VmReply[];
  /** Under way. */
  readonly moves: readonly MigrationReply[];
  /** Oldest first. */
  readonly events: readonly string[];
  readonly trouble: string | null;
  readonly now: number;
}

/** Moves that get a line of their own at most. */
const MOST_MOVES = 6;
/** Lines that say what keeps moves from ending, at most, and those of the screen that are for other things. */
const MOST_ADVICE = 6;
const WITHOUT_ADVICE = 16;

/** The lines of `careof watch`, never more than `rows`, none longer than `columns`. Where not every VM has a line, those that are not simply bound come first. */
export function layout({ hosts, vms, moves, events, trouble, now }: Picture, { columns, rows }: { readonly columns: number; readonly rows: number }): string[] {
  const head = [heading(hosts, columns), ""];
  const shown = moves.length > MOST_MOVES ? moves.slice(0, MOST_MOVES - 1) : moves;
  const below = [
    ...(moves.length === 0 ? [] : ["", ...shown.map(progressLine), ...(shown.length < moves.length ? [`… and ${String(moves.length - shown.length)} more moves`] : []), ...advice(shown, columns, Math.min(MOST_ADVICE, rows - WITHOUT_ADVICE))]),
    ...(trouble === null ? [] : ["", `no contact, trying again: ${trouble}`]),
  ];
  // A heading and a blank line before the events belong to what is left.
  const left = Math.max(0, rows - head.length - below.length - 2);
  const forVms = Math.min(vms.length, Math.max(left - events.length, Math.ceil(left * 0.6)));
  const table = vmTable(inView(vms, forVms), now, columns, new Map(moves.map((each) => [each.vm, each.to]))).trimEnd().split("\n");
  if (forVms < vms.length) table.push(`… and ${String(vms.length - Math.max(0, forVms - 1))} more VMs`);
  const forEvents = Math.max(0, left - Math.min(forVms, vms.length));
  const lines = [...head, ...table, ...below, "", ...(forEvents === 0 ? [] : events.slice(-Math.min(events.length, forEvents)))];
  return lines.slice(0, rows).map((line) => (line.length <= columns ? line : `${line.slice(0, columns - 1)}…`));
}

/** What keeps these moves from ending and what would help, in whole words; `…` where there is more. */
function advice(moves: readonly MigrationReply[], columns: number, most: number): string[] {
  const lines = moves.flatMap(({ vm, detail }) => (detail === null ? [] : wrapped(plain(`${vm}: ${detail}`), columns)));
  return lines.length <= most ? lines : lines.slice(0, Math.max(0, most)).map((line, at) => (at === most - 1 ? `${line.slice(0, columns - 2)} …` : line));
}

function wrapped(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = `  ${word}`;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

/** So many lines: one of them says how many are not shown. */
function inView(vms: readonly VmReply[], lines: number): readonly VmReply[] {
  if (lines >= vms.length) return vms;
  const first = [...vms.filter((vm) => vm.state !== "bound"), ...vms.filter((vm) => vm.state === "bound")];
  return first.slice(0, Math.max(0, lines - 1));
}

/** Hosts by name and state; where they do not fit, how many of each. */
function heading(hosts: readonly HostReply[], columns: number): string {
  const each = hosts.map((host) => `${plain(host.name)} ${host.state === "connected" && !host.draining ? "✓" : stateOf(host)}`).join("   ");
  const whole = `careof  ${each}`;
  if (whole.length <= columns) return whole;
  const counts = new Map<string, number>();
  for (const host of hosts) counts.set(stateOf(host), (counts.get(stateOf(host)) ?? 0) + 1);
  return `careof  ${String(hosts.length)} hosts: ${[...counts].map(([state, count]) => `${String(count)} ${state}`).join(", ")}`;
}
