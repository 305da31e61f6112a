/** Images of a batch: the latest, those of its canary, or the jobs that are looked for. */

import { batchPage, batchPath, getAgain, oneAtATime, url } from "../core/api.js";
import { find, h, setText, syncList } from "../core/dom.js";
import { number } from "../core/format.js";
import { maySubmit } from "../core/session.js";
import { STATE_OF_BYTE } from "../core/states.js";
import { resume } from "./batch_actions.js";
import { thumbnail, updateThumbnail } from "./thumbnail.js";
import { toastError } from "./toasts.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/types.js").Job} Job */
/** @typedef {{state: Set<string>, code: Set<string>, at: number | null}} Wanted `at` is the first job */

const SHOWN = 24;
/** How seldom those of a running batch are read. */
const PAUSE_MS = 10_000;

/**
 * @param {import("../core/router.js").Page} page
 * @param {Wanted} wanted
 */
export function batchImages({ params: { name }, signal }, wanted) {
  const title = h("h2");
  const gallery = h("a", {}, "Open in the gallery");
  const note = h("p", { class: "muted", role: "status" });
  const list = h("ul", { class: "latest" });
  const go = h("button", { class: "primary", type: "button" }, "Resume");
  const top = h("div", { class: "row" }, title, gallery, maySubmit() && go);
  const element = h("section", { class: "batch-images", "aria-label": "Images" }, top, note, list);
  const path = batchPage(name);
  let [shown, readAt] = ["", 0];
  /** @type {ReturnType<typeof choose>} */
  let choice;

  const createTile = (/** @type {Job} */ { index }) =>
    h("li", {}, h("a", { href: `${path}/images/${index}` }, thumbnail(), h("span", { class: "muted" }, number(index))));
  const updateTile = (/** @type {HTMLElement} */ tile, /** @type {Job} */ job) =>
    updateThumbnail(find(tile, ".thumbnail"), job);
  const report = (/** @type {unknown} */ error) =>
    signal.aborted || setText(note, /** @type {Error} */ (error).message);

  const read = oneAtATime(async () => {
    const { label, state, start, latest } = choice;
    readAt = performance.now();
    const codes = wanted.code.size ? [...wanted.code] : [""];
    const readCode = (/** @type {string} */ code) =>
      getAgain(`${batchPath(name)}/jobs`, { query: { state, code, start, limit: SHOWN }, signal }, report);
    const answers = await Promise.all(codes.map(readCode));
    /** @type {Job[]} */
    const jobs = answers.flatMap((answer) => answer.jobs).sort((one, other) => one.index - other.index);
    setText(title, label);
    setText(note, jobs.length ? "" : latest ? "No image is finished yet." : "No job that was read is like this.");
    gallery.href = url(`${path}/gallery`, { state: [...wanted.state], code: [...wanted.code], start: wanted.at });
    syncList(list, latest ? jobs.reverse() : jobs.slice(0, SHOWN), ({ index }) => index, createTile, updateTile);
  });

  /**
   * Show what is wanted, if it or the batch has changed.
   *
   * @param {Batch} batch
   * @param {Uint8Array} states
   * @param {number} start the first job that has one of them
   */
  function update(batch, states, start) {
    go.hidden = batch.paused_by !== "canary";
    go.onclick = () => resume(batch).catch(toastError);
    choice = choose(wanted, batch, (state) => start + nthLast(states, STATE_OF_BYTE.indexOf(state), SHOWN));
    const chosen = JSON.stringify([choice.label, choice.state, [...wanted.code], wanted.at]);
    const counted = chosen + [batch.done, batch.drafted, batch.failed, batch.cancelled, batch.pending];
    const isDue = !shown.startsWith(chosen) || !batch.leased || performance.now() > readAt + PAUSE_MS;
    if (counted === shown || !isDue) return;
    shown = counted;
    read().catch(report);
  }

  return { element, update };
}

/**
 * Return which jobs are shown.
 *
 * @param {Wanted} wanted
 * @param {Batch} batch
 * @param {(state: "done" | "drafted") => number} latest returns the first of the latest images, or drafts
 * @returns {{label: string, state: string[], start: number, latest?: boolean}}
 */
function choose({ state, code, at }, batch, latest) {
  const start = at ?? 0;
  if (state.size || code.size) return { label: "Jobs that match", state: [...state], start };
  if (at !== null) return { label: `Jobs from ${number(start)} on`, state: [], start };
  const ended = ["done", "drafted", "failed"];
  if (batch.paused_by === "canary") return { label: "The canary's images", state: ended, start };
  if (batch.drafted) return { label: "Latest drafts", state: ["drafted"], start: latest("drafted"), latest: true };
  return { label: "Latest images", state: ["done"], start: latest("done"), latest: true };
}

/**
 * Return the place of the last but so many of a value, 0 if there are fewer.
 *
 * @param {Uint8Array} states
 * @param {number} value
 * @param {number} count
 */
function nthLast(states, value, count) {
  let place = states.length;
  for (let found = 0; found < count && place > 0; found += 1) place = states.lastIndexOf(value, place - 1);
  return Math.max(0, place);
}
