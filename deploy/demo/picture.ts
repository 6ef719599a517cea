import { escape, grid, line, px, round, series, text, type Panel, type Step } from "./axes.js";
import type { DemoRecord, Paper, Points } from "./record.js";

/**
 * The plot of the paper's Figure 1, ours above, the paper's below, on one scale of time: seconds since the migration was decided (point A).
 * A third panel shows our first move near. Throughput is what the guest receives, as in the paper.
 */

const WIDTH = 960;
const LEFT = 64;
const PLOT_WIDTH = WIDTH - LEFT - 24;
/** The paper's trace in seconds around its point A; the rest of it is like its end. */
const PAPER_A = 18;
const LONGEST = 42;
const EARLIEST = -10;
const MBIT = 8 / 1000; // bytes per millisecond to Mbit/s

/** Colours of the picture; the report has the same. */
export const PALETTE = `
  .c{--ink:#1c2430;--soft:#5b6675;--rule:#dfe4ea;--ours:#0b6e4f;--paper:#b4531a;--mark:#1c2430;--ground:#ffffff;--shade:#b4531a}
  @media (prefers-color-scheme:dark){.c{--ink:#e8ecf1;--soft:#9aa6b5;--rule:#313b47;--ours:#4fd1a1;--paper:#f09a5b;--mark:#e8ecf1;--ground:#12171d;--shade:#f09a5b}}
  @media print{.c{--ink:#000;--soft:#444;--rule:#ccc;--ours:#0b6e4f;--paper:#b4531a;--mark:#000;--ground:#fff;--shade:#b4531a}}`;

const STYLE = `${PALETTE}
  svg.c{background:var(--ground);font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
  .c text{fill:var(--ink)} .c .title{font-size:15px;font-weight:600} .c .label,.c .tick{font-size:12px;fill:var(--soft)} .c .tick{font-variant-numeric:tabular-nums}
  .c .note{font-size:13px} .c .big{font-size:14px;font-weight:600} .c .grid{stroke:var(--rule)} .c .axis{stroke:var(--soft)}
  .c .line{fill:none;stroke-width:1.6;stroke-linejoin:round} .c .area{stroke:none;opacity:.13}
  .c .line.ours{stroke:var(--ours)} .c .area.ours{fill:var(--ours)} .c .line.paper{stroke:var(--paper)} .c .area.paper{fill:var(--paper)}
  .c .mark{stroke:var(--mark);stroke-dasharray:3 3;opacity:.7} .c .dot{fill:var(--mark)} .c .letter{fill:var(--ground);font-size:11px;font-weight:700}
  .c .silence{fill:var(--shade);opacity:.1}`;

/** Our series: Mbit/s that the guest received, of 100 ms each, in seconds since `origin`. */
function coarse(record: DemoRecord, origin: number): Step[] {
  return record.samples.map((sample) => ({
    from: (sample.t - 100 - origin) / 1000,
    to: (sample.t - origin) / 1000,
    value: (sample.bulkDown.reduce((sum, each) => sum + each, 0) / 100) * MBIT,
  }));
}

/** The same of 10 ms each, in milliseconds since `origin`. */
function fine(record: DemoRecord, origin: number): Step[] {
  return record.samples.flatMap((sample) =>
    sample.bulkDown.map((bytes, index) => ({ from: sample.t - 100 + index * 10 - origin, to: sample.t - 90 + index * 10 - origin, value: (bytes / 10) * MBIT })),
  );
}

/** Letters along the top of a panel, moved apart where they would cover each other. */
function marks(panel: Panel, points: readonly { readonly letter: string; readonly at: number }[]): string {
  let taken = -Infinity;
  return points
    .filter((point) => point.at >= panel.x[0] && point.at <= panel.x[1])
    .sort((one, other) => one.at - other.at)
    .map((point) => {
      const x = px(panel, point.at);
      const dot = Math.max(x, taken + 19);
      taken = dot;
      const top = panel.top - 12;
      return line(x, panel.top, x, panel.top + panel.height, "mark") + line(dot, top, x, panel.top, "mark") +
        `<circle cx="${round(dot)}" cy="${round(top)}" r="8.5" class="dot"/>` + text(dot, top + 4, point.letter, "letter", "middle");
    })
    .join("");
}

function lettered(points: Points, origin: number, scale: number): { letter: string; at: number }[] {
  return [{ letter: "A", at: points.a }, { letter: "B", at: points.b }, { letter: "C", at: points.c }, { letter: "D", at: points.d }]
    .flatMap(({ letter, at }) => (at === null ? [] : [{ letter, at: (at - origin) / scale }]));
}

export function milliseconds(value: number | null): string {
  if (value === null) return "not measured";
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

/** Standalone SVG; `caption` names machine and versions below it. */
export function picture(record: DemoRecord, paper: Paper): string {
  const first = record.points[0];
  const origin = first?.a ?? record.samples[0]?.t ?? 0;
  const x: readonly [number, number] = [EARLIEST, LONGEST];
  const most = 10 * Math.ceil(Math.max(40, record.bulkMbit * 1.2) / 10);
  const ours: Panel = { left: LEFT, top: 74, width: PLOT_WIDTH, height: 170, x, y: [0, most] };
  const theirs: Panel = { ...ours, top: 352 };
  const silence = paper.silence.toSecond - paper.silence.fromSecond;
  const paperSteps = paper.kbitPerSecond.map((kbit, second) => ({ from: second - PAPER_A, to: second + 1 - PAPER_A, value: kbit / 1000 }));
  const silent = { from: paper.silence.fromSecond - PAPER_A, to: paper.silence.toSecond - PAPER_A };
  const end = Math.max(...record.samples.map((sample) => (sample.t - origin) / 1000));

  const parts = [
    text(LEFT, 28, "careof: TCP bulk to the guest while it moves to another subnet and back", "title"),
    text(12, 50, "Mbit/s", "label"),
    grid(ours, 5, 12, ""),
    series(ours, coarse(record, origin), "ours"),
    marks(ours, record.points.flatMap((points) => lettered(points, origin, 1000))),
    ...record.result.moves.slice(0, 2).map((move, index) =>
      text(px(ours, Math.min(end, LONGEST)) + 16, ours.top + 44 + index * 40, `${move.from} → ${move.to}`, "big") +
      text(px(ours, Math.min(end, LONGEST)) + 16, ours.top + 61 + index * 40, `longest time without a byte: ${milliseconds(move.tcpStallMs)}`, "note")),
    text(LEFT, 318, "Kullberg, KTH 2009, Figure 1: iperf to a guest while it moves once", "title"),
    text(12, 340, "Mbit/s", "label"),
    `<rect class="silence" x="${round(px(theirs, silent.from))}" y="${String(theirs.top)}" width="${round(px(theirs, silent.to) - px(theirs, silent.from))}" height="${String(theirs.height)}"/>`,
    grid(theirs, 5, 12, "seconds since the migration was decided (A)"),
    series(theirs, paperSteps, "paper"),
    marks(theirs, [{ letter: "A", at: 0 }, { letter: "B", at: silent.from }, { letter: "C", at: silent.to }, { letter: "D", at: silent.to + 2 }]),
    text((px(theirs, silent.from) + px(theirs, silent.to)) / 2, theirs.top + 92, `${String(silence)} seconds with hardly a byte`, "big", "middle"),
  ];
  const near = first === undefined ? "" : closeUp(record, first, most);
  const height = near === "" ? 576 : 836;
  return `<svg xmlns="http://www.w3.org/2000/svg" class="c" viewBox="0 0 ${String(WIDTH)} ${String(height)}" role="img" aria-label="${escape(`Throughput over time: ours and the paper's`)}"><style>${STYLE}</style>${parts.join("")}${near}</svg>`;
}

/** Our first move, 10 ms a step. */
function closeUp(record: DemoRecord, points: Points, most: number): string {
  const origin = points.b ?? points.a;
  const panel: Panel = { left: LEFT, top: 622, width: PLOT_WIDTH, height: 150, x: [-500, 1000], y: [0, most * 2] };
  return [
    text(LEFT, 588, "careof, the first move near: 10 ms a step", "title"),
    text(12, 610, "Mbit/s", "label"),
    grid(panel, 5, 16, "milliseconds since the guest fell silent (B)"),
    series(panel, fine(record, origin), "ours"),
    marks(panel, lettered(points, origin, 1)),
  ].join("");
}
