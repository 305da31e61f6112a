/** A button that opens a short list of further buttons. */

import { h } from "../core/dom.js";

/**
 * @param {string} label what a screen reader reads out, such as "Actions of cats"
 * @param {HTMLElement} content
 * @param {string} [text] of the button
 */
export function menu(label, content, text = "⋯") {
  const details = h("details", { class: "menu", name: "menu" }, h("summary", { "aria-label": label }, text), content);
  const close = () => (details.open = false);
  content.addEventListener("click", close);
  details.addEventListener("focusout", (event) => {
    if (!(event.relatedTarget instanceof Node && details.contains(event.relatedTarget))) close();
  });
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    close();
    details.querySelector("summary")?.focus();
  });
  return details;
}
