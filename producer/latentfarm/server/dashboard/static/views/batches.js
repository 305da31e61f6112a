/** All batches, newest first: how far each is, and why it waits. */

import { get } from "../core/api.js";
import { fill, find, h, setText, syncList, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { readAgain } from "../core/retry.js";
import { setQuery } from "../core/router.js";
import { maySubmit } from "../core/session.js";
import { batchActions, updateBatchActions } from "../parts/batch_actions.js";
import { describeFacts, describePace } from "../parts/batch_texts.js";
import { chips } from "../parts/chips.js";
import { menu } from "../parts/menu.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { stateBadge, stateBar, updateStateBadge, updateStateBar } from "../parts/state_bar.js";
import { toastError } from "../parts/toasts.js";

/** @typedef {import("../core/types.js").Batch} Batch */

const STATES = ["open", "paused", "complete", "cancelled"];
const PAGE = 50;

/** @param {import("../core/router.js").Page} page */
export async function showBatches({ root, query, signal, setTitle }) {
  setTitle("Batches");
  /** @type {Map<string, Batch>} */
  const batches = new Map();
  /** @type {string | null} */
  let next = null;
  const chosen = new Set(query.getAll("state").filter((state) => STATES.includes(state)));
  const filters = chips("Only batches that are", chosen, () => {
    setQuery({ state: [...chosen] });
    read().catch(toastError);
  });
  filters.update(STATES.map((value) => ({ value, label: value })));
  const list = h("ul", { class: "batches" });
  const more = h("button", { type: "button", onclick: () => readMore().catch(toastError), hidden: true }, "Older batches");
  const body = h("div", {}, reading("Reading the batches …"));
  root.append(h("div", { class: "title" }, h("h1", {}, "Batches"), filters.element), body);

  /** @param {string | null} cursor */
  const readPage = (cursor) =>
    readAgain(
      () => get("/api/batches", { query: { state: [...chosen], limit: PAGE, cursor }, signal }),
      signal,
      (error) => batches.size || fill(body, problem("The batches cannot be read", error)),
    );

  /** Read as many batches again as are shown, so that the page does not become shorter under its reader. */
  async function read() {
    const pages = Math.ceil(batches.size / PAGE) || 1;
    /** @type {Batch[]} */
    const found = [];
    let cursor = null;
    for (let page = 0; page < pages && (page === 0 || cursor); page += 1) {
      const answer = await readPage(cursor);
      found.push(...answer.batches);
      cursor = answer.next;
    }
    batches.clear();
    add(found, cursor);
  }

  async function readMore() {
    const answer = await readPage(next);
    add(answer.batches, answer.next);
  }

  /**
   * @param {Batch[]} found
   * @param {string | null} cursor of the next page
   */
  function add(found, cursor) {
    for (const batch of found) batches.set(batch.batch, batch);
    next = cursor;
    more.hidden = !next;
    render();
  }

  function render() {
    if (!batches.size) return fill(body, nothing(chosen.size > 0));
    syncList(list, [...batches.values()], (batch) => batch.batch, createRow, updateRow);
    if (!list.parentElement) fill(body, list, more);
  }

  /** @param {Batch} batch */
  function createRow(batch) {
    const current = () => batches.get(batch.batch) ?? batch;
    return h(
      "li",
      { class: "card batch-row" },
      h("a", { class: "name", href: `/batches/${encodeURIComponent(batch.batch)}` }, batch.batch),
      stateBadge(),
      h("p", { class: "facts" }),
      stateBar(),
      h("p", { class: "pace" }),
      maySubmit() && menu(`Actions of ${batch.batch}`, batchActions(current)),
      h("ul", { class: "warnings" }),
    );
  }

  let reread = 0;
  // several changes at once are read once
  function readSoon() {
    reread ||= setTimeout(() => {
      reread = 0;
      read().catch(toastError);
    }, 100);
  }
  const update = (/** @type {Batch[]} */ active) => {
    for (const batch of active) if (batches.has(batch.batch)) batches.set(batch.batch, batch);
    if (batches.size) render();
  };
  // events of workers have no batch
  follow({}, { ready: readSoon, change: (event) => event.batch && readSoon(), progress: update }, signal);
  signal.addEventListener("abort", () => clearTimeout(reread));
}

/**
 * @param {HTMLElement} row
 * @param {Batch} batch
 */
function updateRow(row, batch) {
  updateStateBadge(find(row, ".badge"), batch);
  updateStateBar(find(row, ".state-bar"), batch);
  setText(find(row, ".facts"), describeFacts(batch));
  setText(find(row, ".pace"), describePace(batch));
  fill(find(row, ".warnings"), ...(batch.warnings ?? []).map((text) => h("li", {}, ...withCode(text))));
  const actions = row.querySelector(".actions");
  if (actions) updateBatchActions(actions, batch);
}

/** @param {boolean} filtered */
function nothing(filtered) {
  if (filtered) return empty("No batch is in these states", "Choose others, or none to see all.");
  const link = h("a", { class: "button primary", href: "/submit" }, "Submit a prompt file");
  return empty("No batches yet", "A batch is a file of prompts: one image for each row.", maySubmit() && link);
}
