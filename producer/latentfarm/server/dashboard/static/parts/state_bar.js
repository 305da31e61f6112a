/** The stacked bar of a batch: the share of its jobs in each state. */

import { h, setText } from "../core/dom.js";
import { number, percent } from "../core/format.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/types.js").JobState} JobState */

/** The states in the order of the bar, with what users call them. @type {readonly [JobState, string][]} */
export const STATES = [
  ["done", "done"],
  ["failed", "failed"],
  ["cancelled", "cancelled"],
  ["leased", "running"],
  ["pending", "pending"],
];

/** What users call a state. @param {JobState} state */
export const wordOf = (state) => new Map(STATES).get(state);

/** The states as chips with the counts of a batch. @param {Batch} batch */
export const stateChips = (batch) =>
  STATES.map(([value, label]) => ({ value, label, state: value, count: batch[value] }));

/** @returns {HTMLElement} */
export function stateBar() {
  const segments = STATES.map(([state]) => h("span", { data: { state } }));
  return h("div", { class: "state-bar", role: "img" }, ...segments);
}

/**
 * @param {Element} bar
 * @param {Batch} batch
 */
export function updateStateBar(bar, batch) {
  for (const segment of /** @type {Iterable<HTMLElement>} */ (bar.children)) {
    const jobs = batch[/** @type {JobState} */ (segment.dataset.state)];
    segment.style.flexGrow = String(jobs);
    segment.hidden = !jobs;
  }
  const counted = STATES.filter(([state]) => batch[state]).map(([state, word]) => `${number(batch[state])} ${word}`);
  bar.setAttribute("aria-label", `${counted.join(", ") || "no jobs"} of ${number(batch.total)}`);
}

/** The word for a batch's state, with its share where jobs are left. @param {Batch} batch */
export function describeState(batch) {
  const ended = batch.done + batch.failed + batch.cancelled;
  const words = {
    open: batch.leased ? "running" : "waiting",
    opening: "being submitted",
    complete: batch.failed ? "complete, with failures" : "complete",
    paused: `paused at ${percent(batch.total ? ended / batch.total : 0)}`,
  };
  return words[/** @type {keyof typeof words} */ (batch.state)] ?? batch.state;
}

/**
 * @param {HTMLElement} badge
 * @param {Batch} batch
 */
export function updateStateBadge(badge, batch) {
  badge.dataset.state = batch.state === "complete" && batch.failed ? "failed" : batch.state;
  setText(badge, describeState(batch));
}
