/** What a view shows while it has no content: what it waits for, why it is empty, or what is wrong and the cure. */

import { h } from "../core/dom.js";

/**
 * @param {string} title
 * @param {string} [text]
 * @param {...import("../core/dom.js").Child} actions
 */
export function empty(title, text = "", ...actions) {
  return h("div", { class: "placeholder" }, h("h2", {}, title), text && h("p", {}, text), ...actions);
}

/**
 * Return words for something that is read. They appear after 200 ms, so that what is quick does not flicker.
 *
 * @param {string} text such as "Reading the jobs …"
 */
export function reading(text) {
  return h("div", { class: "placeholder reading", role: "status" }, h("p", {}, text));
}

/**
 * @param {string} title
 * @param {unknown} error
 * @param {...import("../core/dom.js").Child} actions
 */
export function problem(title, error, ...actions) {
  const text = error instanceof Error ? error.message : String(error);
  return h("div", { class: "placeholder problem", role: "alert" }, h("h2", {}, title), h("p", {}, text), ...actions);
}
