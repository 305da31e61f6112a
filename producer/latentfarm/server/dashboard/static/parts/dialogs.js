/** Questions that a user answers before something happens that has no way back. */

import { h } from "../core/dom.js";

/**
 * Return whether the user confirms.
 *
 * @param {{title: string, text: string, confirm: string, kind?: "danger" | "primary", typed?: string}} question `typed`
 *   is a word that must be typed first, for what destroys images
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, confirm, kind = "danger", typed }) {
  const input = h("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  const button = h("button", { class: kind, type: "submit", value: "yes", disabled: Boolean(typed) }, confirm);
  input.addEventListener("input", () => (button.disabled = input.value !== typed));
  const label = h("label", {}, h("span", {}, "Type ", h("strong", {}, typed), " to confirm"), input);
  return openDialog(title, [h("p", {}, text), typed && label], button);
}

/**
 * Return what the user enters, null if they cancel.
 *
 * @param {{title: string, text?: string, label: string, value?: string, type?: string, confirm: string}} question
 * @returns {Promise<string | null>}
 */
export async function entered({ title, text, label, value = "", type = "text", confirm }) {
  const input = h("input", { type, value, name: "value", step: type === "number" ? "1" : null });
  const button = h("button", { class: "primary", type: "submit", value: "yes" }, confirm);
  const content = [text && h("p", {}, text), h("label", {}, h("span", {}, label), input)];
  return (await openDialog(title, content, button)) ? input.value : null;
}

/**
 * @param {string} title
 * @param {import("../core/dom.js").Child[]} content
 * @param {HTMLButtonElement} button
 * @returns {Promise<boolean>} whether the button was pressed
 */
function openDialog(title, content, button) {
  // `formnovalidate`: an invalid field must not keep the dialog open against the user's will
  const cancel = h("button", { type: "submit", value: "", formnovalidate: true }, "Cancel");
  const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), ...content);
  form.append(h("div", { class: "row end" }, cancel, button));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  // Enter in a field presses the first button of a form, which is Cancel
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.target instanceof HTMLInputElement)) return;
    event.preventDefault();
    if (!button.disabled) button.click();
  });
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    }),
  );
}
