/** All batches, newest first: how far each is, and why it waits. */

import { batchPage, getAgain, oneAtATime } from "../core/api.js";
import { fill, find, h, setText, syncList, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { setQuery } from "../core/router.js";
import { maySubmit } from "../core/session.js";
import { batchActions, updateBatchActions } from "../parts/batch_actions.js";
import { chips } from "../parts/chips.js";
import { menu } from "../parts/menu.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { describeFacts, describePace, stateBar, updateStateBadge, updateStateBar } from "../parts/state_bar.js";

/** @typedef {import("../core/types.js").Batch} Batch */

const STATES = ["open", "paused", "drafted", "complete", "cancelled"];
const PAGE = 50;

/** @param {import("../core/router.js").Page} page */
export function showBatches({ root, query, signal, setTitle }) {
  setTitle("Batches");
  /** @type {Map<string, Batch>} */
  let batches = new Map();
  let pages = 1;
  const chosen = new Set(query.getAll("state").filter((state) => STATES.includes(state)));
  const body = h("div", {}, reading("Reading the batches …"));
  const list = h("ul", { class: "batches" });
  const more = h("button", { type: "button", onclick: readMore, hidden: true }, "Older batches");
  const fail = (/** @type {unknown} */ error) =>
    batches.size || fill(body, problem("The batches cannot be read", error));

  const read = oneAtATime(async () => {
    /** @type {Batch[]} */
    const found = [];
    /** @type {string | null} */
    let cursor = null;
    for (let page = 0; page < pages && (cursor || !page); page += 1) {
      const options = { query: { state: [...chosen], limit: PAGE, cursor }, signal };
      /** @type {{batches: Batch[], next: string | null}} */
      const answer = await getAgain("/api/batches", options, fail);
      found.push(...answer.batches);
      cursor = answer.next;
    }
    batches = new Map(found.map((batch) => [batch.batch, batch]));
    more.hidden = !cursor;
    render();
  });
  const update = () => read().catch((error) => signal.aborted || fail(error));

  function readMore() {
    pages += 1;
    update();
  }

  function render() {
    if (!batches.size) return fill(body, nothing(chosen.size > 0));
    const current = (/** @type {string} */ name) => /** @type {Batch} */ (batches.get(name));
    const create = (/** @type {Batch} */ { batch }) => createRow(batch, () => current(batch));
    syncList(list, [...batches.values()], ({ batch }) => batch, create, updateRow);
    if (!list.isConnected) fill(body, list, more);
  }

  const filters = chips("Only batches that are", chosen, () => {
    setQuery({ state: [...chosen] });
    update();
  });
  filters.update(STATES.map((value) => ({ value, label: value })));
  root.append(h("div", { class: "title" }, h("h1", {}, "Batches"), filters.element), body);
  const progress = (/** @type {Batch[]} */ active) => {
    for (const batch of active) if (batches.has(batch.batch)) batches.set(batch.batch, batch);
    if (batches.size) render();
  };
  // events of workers have no batch
  follow({}, { ready: update, change: (event) => event.batch && update(), progress }, signal);
}

/** @param {string} name @param {() => Batch} current returns the batch as it is now */
function createRow(name, current) {
  const link = h("a", { class: "name", href: batchPage(name) }, name);
  const actions = maySubmit() && menu(`Actions of ${name}`, batchActions(current));
  const [badge, facts, pace] = ["badge", "facts", "pace"].map((part) => h("p", { class: part }));
  const warnings = h("ul", { class: "warnings" });
  return h("li", { class: "card batch-row" }, link, badge, facts, stateBar(), pace, actions, warnings);
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
