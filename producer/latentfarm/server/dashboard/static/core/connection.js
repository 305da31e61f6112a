/** Whether the page hears from the farm: shown at the top, and in a notice while it does not. */

import { h } from "./dom.js";

/** @typedef {"connecting" | "live" | "lost" | "redis"} Connection */

const OLD = "What you see is the last that was known;";
/** The label and the notice. @type {Record<Connection, [string, string]>} */
const TEXTS = {
  connecting: ["Connecting", ""],
  live: ["Live", ""],
  lost: ["No connection", `The server does not answer. ${OLD} the page connects again by itself.`],
  redis: ["Redis is unavailable", `The server cannot reach Redis. ${OLD} workers finish what they have.`],
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
  const [text, notice] = TEXTS[connection];
  label.dataset.state = connection;
  label.textContent = text;
  const notices = document.getElementById("notices");
  notices?.replaceChildren(...(notice ? [h("p", { class: "notice" }, notice)] : []));
}
