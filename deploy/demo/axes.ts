/** A plotting area: data to pixels, and its grid. */
export interface Panel {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
  readonly x: readonly [number, number];
  readonly y: readonly [number, number];
}

/** `x` and `y` of each point, drawn as a line of steps: the value holds from its x to the next one's. */
export interface Step {
  readonly from: number;
  readonly to: number;
  readonly value: number;
}

export function px(panel: Panel, x: number): number {
  return panel.left + ((x - panel.x[0]) / (panel.x[1] - panel.x[0])) * panel.width;
}

export function py(panel: Panel, y: number): number {
  const inside = Math.min(Math.max(y, panel.y[0]), panel.y[1]);
  return panel.top + panel.height - ((inside - panel.y[0]) / (panel.y[1] - panel.y[0])) * panel.height;
}

export function round(value: number): string {
  return String(Math.round(value * 100) / 100);
}

export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (found) => `&#${String(found.charCodeAt(0))};`);
}

/** A round step that gives at most `most` intervals. */
export function tickStep(span: number, most: number): number {
  const raw = span / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  return ([1, 2, 5, 10].find((each) => each * power >= raw) ?? 10) * power;
}

export function ticks(range: readonly [number, number], most: number): number[] {
  const step = tickStep(range[1] - range[0], most);
  const all: number[] = [];
  for (let at = Math.ceil(range[0] / step) * step; at <= range[1] + step / 1000; at += step) all.push(Math.round(at / step) * step);
  return all;
}

export function text(x: number, y: number, content: string, kind: string, anchor: "start" | "middle" | "end" = "start"): string {
  return `<text x="${round(x)}" y="${round(y)}" class="${kind}" text-anchor="${anchor}">${escape(content)}</text>`;
}

export function line(x1: number, y1: number, x2: number, y2: number, kind: string): string {
  return `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" class="${kind}"/>`;
}

/** Frame, grid and tick labels. */
export function grid(panel: Panel, yTicks: number, xTicks: number, xLabel: string): string {
  const right = panel.left + panel.width;
  const bottom = panel.top + panel.height;
  return [
    ...ticks(panel.y, yTicks).map((value) => line(panel.left, py(panel, value), right, py(panel, value), "grid") + text(panel.left - 8, py(panel, value) + 4, String(value), "tick", "end")),
    ...ticks(panel.x, xTicks).map((value) => line(px(panel, value), bottom, px(panel, value), bottom + 4, "axis") + text(px(panel, value), bottom + 17, String(value).replace("-", "−"), "tick", "middle")),
    line(panel.left, bottom, right, bottom, "axis"),
    text(right, bottom + 33, xLabel, "label", "end"),
  ].join("");
}

/** A line of steps, and the area below it; what lies outside the panel is clipped. Neighbouring steps of one value are one. */
export function series(panel: Panel, steps: readonly Step[], kind: string): string {
  const visible = steps.filter((step) => step.to > panel.x[0] && step.from < panel.x[1]);
  const first = visible[0];
  const last = visible.at(-1);
  if (first === undefined || last === undefined) return "";
  const clip = (x: number): string => round(px(panel, Math.min(Math.max(x, panel.x[0]), panel.x[1])));
  const path: string[] = [];
  let drawn: number | null = null;
  for (const step of visible) {
    if (drawn !== step.value) path.push(`${drawn === null ? "M" : "L"}${clip(step.from)} ${round(py(panel, step.value))}`);
    path.push(`L${clip(step.to)} ${round(py(panel, step.value))}`);
    drawn = step.value;
  }
  const bottom = round(panel.top + panel.height);
  return `<path class="area ${kind}" d="${path.join("")}L${clip(last.to)} ${bottom}L${clip(first.from)} ${bottom}Z"/><path class="line ${kind}" d="${path.join("")}"/>`;
}
