/** Numbers, times and sizes as text. */

const count = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** @param {number} value */
export const number = (value) => count.format(value);

/**
 * @param {number} value
 * @param {string} one
 * @param {string} [many]
 */
export const plural = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

/**
 * Return a share as a percentage. Only 0 is "0%" and only 1 is "100%".
 *
 * @param {number} share
 */
export function percent(share) {
  if (share <= 0) return "0%";
  if (share >= 1) return "100%";
  return share < 0.01 ? "<1%" : `${Math.min(99, Math.round(100 * share))}%`;
}

/**
 * Return images per second, or per minute or hour where that is easier to read.
 *
 * @param {number | null | undefined} perSecond
 */
export function rate(perSecond) {
  if (!perSecond) return "–";
  if (perSecond >= 1) return `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} / s`;
  return perSecond * 60 >= 1 ? `${(perSecond * 60).toFixed(1)} / min` : `${(perSecond * 3600).toFixed(1)} / h`;
}

/**
 * Return seconds in two units at most.
 *
 * @param {number | null | undefined} seconds
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  let rest = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of Object.entries({ d: 86_400, h: 3_600, min: 60, s: 1 })) {
    const whole = Math.floor(rest / size);
    if (whole) parts.push(`${whole} ${unit}`);
    else if (parts.length) break;
    rest -= whole * size;
    if (parts.length === 2) break;
  }
  return parts.join(" ") || "0 s";
}

/**
 * @param {string | null | undefined} time as ISO 8601
 */
export function ago(time) {
  if (!time) return "–";
  const seconds = (Date.parse(time) - Date.now()) / 1000;
  const units = Object.entries({ day: 86_400, hour: 3_600, minute: 60 });
  const [unit, size] = units.find((each) => -seconds >= each[1]) ?? ["", 1];
  if (!unit) return "just now";
  return relative.format(Math.round(seconds / size), /** @type {Intl.RelativeTimeFormatUnit} */ (unit));
}

/** The command that starts a worker for a model. @param {string} model */
export const workerCommand = (model) =>
  `\`latentfarm worker --model ${["mini", "mini-flow"].includes(model) ? model : `${model}=FOLDER_OR_HUB_ID`}\``;

/** @param {number} value in bytes */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log10(value) / 3) : 0);
  return `${(value / 1000 ** power).toFixed(power && value / 1000 ** power < 10 ? 1 : 0)} ${units[power]}`;
}
