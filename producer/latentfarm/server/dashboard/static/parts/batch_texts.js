/** Lines of text about a batch. */

import { ago, duration, number, rate } from "../core/format.js";

/** @typedef {import("../core/types.js").Batch} Batch */

/** Whose it is, of which model, since when. @param {Batch} batch */
export function describeFacts(batch) {
  const facts = [batch.model, batch.owner && `by ${batch.owner}`, batch.priority && `priority ${batch.priority}`];
  return [...facts, batch.created && ago(batch.created)].filter(Boolean).join(" · ");
}

/** How far it is, and how fast. @param {Batch} batch */
export function describePace(batch) {
  const ended = batch.done + batch.failed + batch.cancelled;
  const isGoing = ended < batch.total && batch.state !== "paused";
  const pace = [`${number(ended)} of ${number(batch.total)}`, rate(batch.images_per_s)];
  if (batch.eta_s !== null && isGoing) pace.push(`${duration(batch.eta_s)} left`);
  return pace.filter((text) => text !== "–").join(" · ");
}
