/** Short messages at the bottom: what was done, with a way back where there is one. */

import { h } from "../core/dom.js";

const SHOWN_MS = 8_000;

/**
 * Show a message. One with an action stays while it has the pointer or the focus.
 *
 * @param {string} text
 * @param {{label?: string, onaction?: () => unknown, kind?: "plain" | "error"}} [options]
 */
export function toast(text, { label, onaction, kind = "plain" } = {}) {
  const close = () => element.remove();
  const act = () => {
    close();
    return onaction?.();
  };
  const action = label && button(label, act, { class: "link" });
  const end = button("×", close, { class: "icon", "aria-label": "Close this message" });
  const element = h("div", { class: "toast", data: { kind } }, h("p", {}, text), action, end);
  document.getElementById("toasts")?.append(element);
  const expire = () => {
    if (element.matches(":hover, :focus-within")) setTimeout(expire, SHOWN_MS / 4);
    else close();
  };
  setTimeout(expire, SHOWN_MS);
}

/** @param {unknown} error */
export function toastError(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  toast(error instanceof Error ? error.message : String(error), { kind: "error" });
}

/**
 * Return a button; an error of what it does is shown.
 *
 * @param {string} text
 * @param {() => unknown} act
 * @param {Record<string, any>} [props]
 */
export const button = (text, act, props = {}) =>
  h("button", { type: "button", ...props, onclick: () => Promise.resolve().then(act).catch(toastError) }, text);

/** Copy a text, and confirm it. @param {string} text */
export function copy(text) {
  const answer = (/** @type {ClipboardEvent} */ event) => {
    event.clipboardData?.setData("text/plain", text);
    event.preventDefault();
  };
  // a page of plain http has no `navigator.clipboard`
  document.addEventListener("copy", answer, { once: true });
  document.execCommand("copy");
  toast("Copied.");
}
