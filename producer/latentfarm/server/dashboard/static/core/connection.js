/** Whether the page hears from the farm: shown at the top, and in a notice while it does not. */

import { h } from "./dom.js";

/** @typedef {"connecting" | "live" | "lost" | "redis"} Connection */

/** @type {Record<Connection, {label: string, notice: string}>} */
const TEXTS = {
  connecting: { label: "Connecting", notice: "" },
  live: { label: "Live", notice: "" },
  lost: {
    label: "No connection",
    notice: "The server does not answer. What you see is the last that was known; the page connects again by itself.",
  },
  redis: {
    label: "Redis is unavailable",
    notice: "The server cannot reach Redis. What you see is the last that was known; workers finish what they have.",
  },
};

const label = h("span", { class: "connection", role: "status" });

/** @type {Connection} */
let current = "connecting";

/** Return the indicator for the top of the page. */
export function connectionLabel() {
  setConnection(current);
  return label;
}

/** @param {Connection} connection */
export function setConnection(connection) {
  current = connection;
  const { label: text, notice } = TEXTS[connection];
  label.dataset.state = connection;
  label.textContent = text;
  const notices = document.getElementById("notices");
  notices?.replaceChildren(...(notice ? [h("p", { class: "notice" }, notice)] : []));
}
