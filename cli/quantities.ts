/** `1.4 GB`; powers of 1000. */
export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)} ${units[unit] ?? ""}`;
}

/** `7.8G`, `503G`, `5.2/7.8G` with what is left of it; G as in `qemu.memory`, powers of 1024. `–` for what is not known. Less than 0 is left where more is in use than there is. */
export function memory(count: number, left: number | null = null): string {
  if (count <= 0) return "–";
  return left === null ? `${gib(count)}G` : `${gib(left)}/${gib(count)}G`;
}

function gib(count: number): string {
  const value = count / 2 ** 30;
  return Math.abs(value) >= 99.95 ? value.toFixed(0) : value.toFixed(1);
}

/** `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`. */
export function duration(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 172_800) return `${(seconds / 3600).toFixed(0)} h`;
  return `${(seconds / 86_400).toFixed(0)} d`;
}

/** Milliseconds as measured; `–` for what was not. */
export function measured(ms: number | null): string {
  if (ms === null) return "–";
  return `${ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
}

/** How long ago an ISO time was; `–` for none. */
export function age(time: string | null, now: number): string {
  return time === null ? "–" : duration(now - Date.parse(time));
}

/** An ISO time as the machine's local time, `2026-03-01 12:34:56`; `–` for none. */
export function localTime(time: string | null): string {
  if (time === null) return "–";
  const date = new Date(time);
  const two = (part: number): string => String(part).padStart(2, "0");
  const day = [String(date.getFullYear()), two(date.getMonth() + 1), two(date.getDate())].join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":")}`;
}
