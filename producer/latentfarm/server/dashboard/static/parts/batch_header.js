/** The top of each view of a batch, and how such a view keeps itself current. */

import { ApiError, batchPage, batchPath, get, readAgain } from "../core/api.js";
import { fill, h, setText, syncList, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { number } from "../core/format.js";
import { batchActions, updateBatchActions } from "./batch_actions.js";
import { empty, problem } from "./placeholder.js";
import { STATES, describeFacts, describePace, stateBar, updateStateBadge, updateStateBar } from "./state_bar.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/router.js").Page} Page */

const TABS = Object.entries({ overview: "Overview", gallery: "Gallery", grid: "Grid" });

/**
 * Return the header of a batch: its name, how far it is, its actions and its views.
 *
 * @param {Page} page
 * @param {"overview" | "gallery" | "grid" | ""} current which view is shown
 */
export function batchHeader({ params, setTitle }, current) {
  const name = params.name;
  setTitle(name);
  /** @type {Batch | null} */
  let shown = null;
  const badge = h("span", { class: "badge" });
  const facts = h("p", { class: "facts" });
  const actions = batchActions(() => /** @type {Batch} */ (shown));
  const bar = stateBar();
  const counts = STATES.map(([state]) => h("li", { data: { state }, hidden: true }));
  const pace = h("p", { class: "pace" });
  const warnings = h("ul", { class: "warnings" });
  const tabs = TABS.map(([view, label]) => {
    const href = `${batchPage(name)}${view === "overview" ? "" : `/${view}`}`;
    return h("a", { href, "aria-current": view === current ? "page" : null }, label);
  });
  const title = h("div", { class: "row" }, h("h1", {}, name), badge);
  const progress = h("div", { class: "progress" }, bar, h("ul", { class: "counts" }, ...counts), pace);
  const nav = h("nav", { class: "tabs", "aria-label": "Views of the batch" }, ...tabs);
  const element = h("header", { class: "batch-header" }, h("div", {}, title, facts), actions, progress, warnings, nav);

  /** @param {Batch} batch */
  function update(batch) {
    shown = batch;
    updateStateBadge(badge, batch);
    setText(facts, describeFacts(batch));
    updateBatchActions(actions, batch);
    updateStateBar(bar, batch);
    STATES.forEach(([state, word], place) => {
      counts[place].hidden = !batch[state];
      setText(counts[place], `${number(batch[state])} ${word}`);
    });
    setText(pace, describePace(batch));
    syncList(warnings, batch.warnings ?? [], String, (text) => h("li", {}, ...withCode(text)));
  }

  return { element, update };
}

/**
 * Read the page's batch and follow its events, until `signal` is aborted or it is deleted, which the page then shows.
 *
 * @param {Page} page
 * @param {import("../core/api.js").Query} query of the events, besides `batch`
 * @param {Record<string, (data: any) => void>} handlers of the events; `progress` gets the first status too
 * @param {AbortSignal} [signal]
 */
export async function followBatch(page, query, handlers, signal = page.signal) {
  const name = page.params.name;
  const ended = new AbortController();
  const following = AbortSignal.any([signal, ended.signal]);

  /** @param {string} title */
  function end(title) {
    if (following.aborted) return;
    ended.abort();
    fill(page.root, empty(title, "", h("a", { class: "button", href: "/" }, "Go to the batches")));
  }

  const read = () => get(batchPath(name), { signal: following });
  const isUnknown = (/** @type {unknown} */ error) => error instanceof ApiError && error.status === 404;
  const unavailable = h("div");
  const report = (/** @type {ApiError} */ error) => {
    fill(unavailable, problem("The batch cannot be read", error));
    page.root.append(unavailable);
  };
  try {
    handlers.progress(await readAgain(read, following, report));
    unavailable.remove();
  } catch (error) {
    if (isUnknown(error)) end(`There is no batch ${name}`);
    else if (!following.aborted) fill(page.root, problem("The batch cannot be read", error));
    return;
  }
  const change = (/** @type {any} */ event) => {
    if (event.event === "deleted") end(`${name} was deleted`);
    else handlers.change?.(event);
  };
  // without a connection, its end is not heard
  const lost = () => read().catch((error) => isUnknown(error) && end(`${name} was deleted`));
  follow({ ...query, batch: name }, { ...handlers, change, lost }, following);
}
