/** Filters as chips with counts. Those of a group are combined by "or"; the URL has them. */

import { fill, h } from "../core/dom.js";
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

  /** @param {Chip} chip */
  function button({ value, label: text, count, state }) {
    const toggle = () => {
      if (!chosen.delete(value)) chosen.add(value);
      pressed.setAttribute("aria-pressed", String(chosen.has(value)));
      onchange(chosen);
    };
    const props = { class: "chip", type: "button", "aria-pressed": String(chosen.has(value)), onclick: toggle };
    const counted = count === undefined ? null : h("span", { class: "count" }, number(count));
    const pressed = h("button", { ...props, data: { value, ...(state ? { state } : {}) } }, text, counted);
    return pressed;
  }

  /** @param {readonly Chip[]} all */
  function update(all) {
    const focused = element.contains(document.activeElement) && document.activeElement;
    const value = focused instanceof HTMLElement ? focused.dataset.value : undefined;
    fill(element, ...all.map(button));
    if (value !== undefined) [...element.children].find((each) => isOf(each, value))?.focus();
  }

  return { element, update };
}

/**
 * @param {Element} element
 * @param {string} value
 * @returns {element is HTMLElement}
 */
const isOf = (element, value) => element instanceof HTMLElement && element.dataset.value === value;
