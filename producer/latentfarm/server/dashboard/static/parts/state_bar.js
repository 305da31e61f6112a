/** How far a batch is: the share of its jobs in each state as a stacked bar, and in words. */

import { h, setText } from "../core/dom.js";
import { ago, duration, number, percent, rate } from "../core/format.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/types.js").JobState} JobState */

/** The states in the order of the bar, with what users call them. @type {readonly [JobState, string][]} */
export const STATES = [
  ["done", "done"],
  ["drafted", "drafted"],
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

/** How many jobs go on only if a user wants it. @param {Batch} batch */
const endedOf = (batch) => batch.done + batch.failed + batch.cancelled + batch.drafted;

/** The word for a batch's state, with its share where jobs are left. @param {Batch} batch */
export function describeState(batch) {
  const words = {
    open: batch.leased ? "running" : "waiting",
    opening: "being submitted",
    complete: batch.failed ? "complete, with failures" : "complete",
    paused: `paused at ${percent(batch.total ? endedOf(batch) / batch.total : 0)}`,
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

/** Whose it is, of which model, since when. @param {Batch} batch */
export function describeFacts(batch) {
  const facts = [batch.model, batch.owner && `by ${batch.owner}`, batch.priority && `priority ${batch.priority}`];
  return [...facts, batch.created && ago(batch.created)].filter(Boolean).join(" · ");
}

/** How far it is, and how fast. @param {Batch} batch */
export function describePace(batch) {
  const ended = endedOf(batch);
  const isGoing = ended < batch.total && batch.state !== "paused";
  const pace = [`${number(ended)} of ${number(batch.total)}`, rate(batch.images_per_s)];
  if (batch.eta_s !== null && isGoing) pace.push(`${duration(batch.eta_s)} left`);
  return pace.filter((text) => text !== "–").join(" · ");
}
