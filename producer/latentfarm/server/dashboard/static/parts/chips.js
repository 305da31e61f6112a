/** Filters as chips with counts. Those of a group are combined by "or"; the URL has them. */

import { h, setText, syncList } from "../core/dom.js";
import { number } from "../core/format.js";

/**
 * @typedef {object} Chip
 * @property {string} value
 * @property {string} label
 * @property {number} [count]
 * @property {string} [state] whose colour it has
 */

/**
 * Return a group of chips; `update` of it shows other ones.
 *
 * @param {string} label of the group
 * @param {Set<string>} chosen changed in place
 * @param {(chosen: Set<string>) => void} onchange
 */
export function chips(label, chosen, onchange) {
  const element = h("div", { class: "chips", role: "group", "aria-label": label });
  /** @type {readonly Chip[]} */
  let shown = [];

  /** @param {string} value */
  function toggle(value) {
    if (!chosen.delete(value)) chosen.add(value);
    update(shown);
    onchange(chosen);
  }

  /** @param {readonly Chip[]} all */
  function update(all) {
    shown = all;
    const create = (/** @type {Chip} */ { value, label: text, count, state }) => {
      const counted = count === undefined ? null : h("span", { class: "count" });
      const data = { value, ...(state ? { state } : {}) };
      return h("button", { class: "chip", type: "button", data, onclick: () => toggle(value) }, text, counted);
    };
    const refresh = (/** @type {HTMLElement} */ button, /** @type {Chip} */ { value, count }) => {
      button.ariaPressed = String(chosen.has(value));
      if (button.lastElementChild) setText(button.lastElementChild, number(count ?? 0));
    };
    syncList(element, all, ({ value }) => value, create, refresh);
  }

  return { element, update };
}
