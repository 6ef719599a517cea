import { escape } from "./axes.js";
import { milliseconds, PALETTE, picture } from "./picture.js";
import type { DemoMove, DemoRecord, Paper } from "./record.js";

const STYLE = `${PALETTE}
  body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
  main{max-width:960px;margin:0 auto;padding:32px 20px 48px}
  h1{font-size:26px;line-height:1.25;margin:0 0 8px} h2{font-size:18px;margin:36px 0 8px} p{margin:8px 0;max-width:75ch}
  .soft{color:var(--soft);font-size:14px} svg{width:100%;height:auto;display:block;margin:20px 0 8px}
  .wide{overflow-x:auto} table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
  th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--rule);vertical-align:top} th:first-child,td:first-child{text-align:left} thead th{color:var(--soft);font-weight:600}
  dl{display:grid;grid-template-columns:auto 1fr;gap:4px 16px;font-size:14px} dt{color:var(--soft)} dd{margin:0}
  @media print{main{padding:0;max-width:none} h2,table,svg{break-inside:avoid}}`;

/** Rows of the moves' table: what, and how each move and the paper did. `null` is "no figure". */
const ROWS: readonly { readonly name: string; readonly of: (move: DemoMove, index: number, record: DemoRecord) => string; readonly paper: string }[] = [
  { name: "result", of: (move) => move.result, paper: "completed" },
  { name: "longest time without a byte of the TCP streams", of: (move) => milliseconds(move.tcpStallMs), paper: "29 s" },
  { name: "guest halted (pause)", of: (move) => milliseconds(move.pauseMs), paper: "" },
  { name: "guest ran but could not receive (gap down)", of: (move) => milliseconds(move.gapDownMs), paper: "" },
  { name: "guest ran but was not heard (gap up)", of: (move) => milliseconds(move.gapUpMs), paper: "" },
  { name: "longest silence for the correspondent, down", of: (move) => milliseconds(move.serviceGapDownMs), paper: "" },
  { name: "longest silence for the correspondent, up", of: (move) => milliseconds(move.serviceGapUpMs), paper: "" },
  { name: "packets to the guest: received of sent", of: (move) => `${String(move.receivedDown)} of ${String(move.sentDown)}`, paper: "" },
  { name: "packets from the guest: received of sent", of: (move) => `${String(move.receivedUp)} of ${String(move.sentUp)}`, paper: "" },
  { name: "lost, duplicated, reordered", of: (move) => `${String(move.lostDown + move.lostUp)}, ${String(move.duplicated)}, ${String(move.reordered)}`, paper: "" },
  { name: "whole migration", of: (_move, index, record) => milliseconds(record.totals[index]?.totalMs ?? null), paper: "" },
  { name: "state copied", of: (_move, index, record) => megabytes(record.totals[index]?.bytes ?? null), paper: "" },
];

function megabytes(bytes: number | null): string {
  return bytes === null ? "not measured" : `${(bytes / 1e6).toFixed(1)} MB`;
}

function times(count: number): string {
  return count === 1 ? "once" : count === 2 ? "twice" : `${String(count)} times`;
}

/** One self-contained HTML page: no script, nothing fetched. */
export function report(record: DemoRecord, paper: Paper): string {
  const { result } = record;
  const worst = Math.max(...result.moves.map((move) => move.tcpStallMs ?? Infinity));
  const headline = result.tcp.survived && Number.isFinite(worst)
    ? `The guest moved ${times(result.moves.length)} between subnets; its TCP sessions went on, at most ${milliseconds(worst)} without a byte`
    : result.tcp.survived ? "The guest moved between subnets and its TCP sessions went on" : "A TCP session did not survive";
  const facts: readonly (readonly [string, string])[] = [
    ["when", record.at],
    ["machine", record.machine],
    ["hypervisor", `QEMU ${result.qemu}, ${result.accel === "kvm" ? "KVM" : result.accel === "tcg" ? "TCG (no usable KVM: every instruction is translated, which makes pauses longer)" : result.accel}`],
    ["data plane", result.dataPlane],
    ["traffic", `TCP bulk ${String(record.bulkMbit)} Mbit/s each way, ${String(record.pps)} numbered UDP packets/s each way, a request/response session, an idle session`],
    ["TCP", `${result.tcp.survived ? "all sessions survived" : "a session broke"}; ${megabytes(result.tcp.bytes)} in all`],
  ];
  const head = result.moves.map((move) => `<th scope="col">${escape(`${move.from} → ${move.to}`)}</th>`).join("");
  const rows = ROWS.map((row) => `<tr><th scope="row">${row.name}</th>${result.moves.map((move, index) => `<td>${escape(row.of(move, index, record))}</td>`).join("")}<td>${row.paper}</td></tr>`).join("\n");
  return `<!doctype html>
<html lang="en" class="c"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<title>careof demo</title><style>${STYLE}</style></head><body><main>
<h1>${escape(headline)}</h1>
<p>A real Linux guest keeps its address 198.51.100.7 while it is live-migrated between two hosts in different subnets. A correspondent in a third network talks to it all the time.
The paper that this work follows measured half a minute of silence for one such move.</p>
${picture(record, paper)}
<p class="soft"><b>A</b> the migration is decided · <b>B</b> the guest falls silent · <b>C</b> the guest is heard again, from the other subnet · <b>D</b> throughput as before.
Ours: bytes that the guest received in 100 ms, by its own count; peaks above the scale, which TCP sends behind every silence, are cut. The paper's: bytes in 1 s; ${escape(paper.source)}. Its points are read off that trace.</p>
<h2>The moves</h2>
<div class="wide"><table><thead><tr><th scope="col"></th>${head}<th scope="col">paper, 2009</th></tr></thead><tbody>
${rows}
</tbody></table></div>
<p class="soft">All silences are on the correspondent's clock, and less the sending period. Counts cover at least two seconds before and after each move.</p>
<h2>This run</h2>
<dl>${facts.map(([name, value]) => `<dt>${name}</dt><dd>${escape(value)}</dd>`).join("")}</dl>
</main></body></html>
`;
}
