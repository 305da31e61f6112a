/** The failed jobs of a batch by error code: how many, why, which, and how to run them again. */

import { batchPage, batchPath, getAgain, oneAtATime } from "../core/api.js";
import { fill, find, h, setText, syncList } from "../core/dom.js";
import { number, plural } from "../core/format.js";
import { maySubmit } from "../core/session.js";
import { retry } from "./batch_actions.js";
import { button } from "./toasts.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/types.js").Failure} Failure */

const LISTED = 5;

/** @param {import("../core/router.js").Page} page */
export function batchFailures({ params: { name }, signal }) {
  const list = h("ul", { class: "failures" });
  const complaint = h("p", { class: "complaint", role: "alert" });
  const element = h("section", { "aria-label": "Failures", hidden: true }, h("h2", {}, "Failures"), complaint, list);
  /** @type {Batch} */
  let batch;
  let shown = "";

  /** @param {Failure} failure */
  function createRow({ code }) {
    const again = button("Retry", () => retry(batch, code), { "aria-label": `Retry ${code}` });
    const action = code === "invalid_row" ? h("p", { class: "muted" }, "Cannot run: the row is invalid") : again;
    const facts = ["count", "message", "indices"].map((name_) => h("p", { class: name_ }));
    return h("li", { class: "card failure" }, h("code", {}, code), ...facts, maySubmit() && action);
  }

  /**
   * @param {HTMLElement} row
   * @param {Failure} failure
   */
  function updateRow(row, { count, message, indices }) {
    setText(find(row, ".count"), plural(count, "job"));
    setText(find(row, ".message"), message);
    const path = `${batchPage(name)}/images`;
    const links = indices.slice(0, LISTED).map((index) => h("a", { href: `${path}/${index}` }, number(index)));
    fill(find(row, ".indices"), ...links, count > LISTED && "…");
  }

  const report = (/** @type {unknown} */ error) =>
    signal.aborted || setText(complaint, /** @type {Error} */ (error).message);
  const read = oneAtATime(async () => {
    const { failures } = await getAgain(`${batchPath(name)}/failures`, { signal }, report);
    setText(complaint, "");
    syncList(list, /** @type {Failure[]} */ (failures), ({ code }) => code, createRow, updateRow);
  });

  /** @param {Batch} found */
  function update(found) {
    batch = found;
    element.hidden = !batch.failed;
    if (batch.failed && shown !== JSON.stringify(batch.errors)) read().catch(report);
    shown = JSON.stringify(batch.errors);
  }

  return { element, update };
}
