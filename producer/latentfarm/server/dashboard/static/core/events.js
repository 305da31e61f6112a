/**
 * The events of the farm: one stream for a view, which connects again by itself. A hidden page has none, so that open
 * tabs cost nothing: browsers allow six connections to a server, and a page that is shown again reads all it missed.
 */

import { get, url } from "./api.js";
import { setConnection } from "./connection.js";

/** @typedef {import("./api.js").Query} Query */

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

/**
 * Follow events until `signal` is aborted.
 *
 * @param {Query} query of `GET /api/events`
 * @param {Record<string, (data: any) => void>} handlers by the name of the event: `change`, `progress`, `states`,
 *   `slots`, `live`; `ready`, which comes after each connection: what is read from then on has every change; and
 *   `lost`, after each attempt that failed
 * @param {AbortSignal} signal
 */
export function follow(query, handlers, signal) {
  /** @type {EventSource | null} */
  let source = null;
  let timer = 0;
  let pause = FIRST_PAUSE_MS;
  let after = "";

  function open() {
    if (signal.aborted || document.hidden || source) return;
    const stream = (source = new EventSource(url("/api/events", { ...query, after })));
    stream.onerror = () => retry();
    stream.addEventListener("outage", (event) => {
      setConnection(JSON.parse(event.data).unavailable ? "redis" : "live");
    });
    for (const name of new Set(["ready", "change", ...Object.keys(handlers)])) {
      stream.addEventListener(name, (event) => {
        if (name === "ready") {
          pause = FIRST_PAUSE_MS;
          setConnection("live");
        }
        after = event.lastEventId || after;
        handlers[name]?.(JSON.parse(event.data));
      });
    }
  }

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  // the browser's own attempts end for good at an answer such as 503
  function retry() {
    close();
    setConnection("lost");
    handlers.lost?.(null);
    // a stream does not say why it has ended; this requests a key if the session has
    get("/api/session", { signal }).catch(() => {});
    timer = setTimeout(open, pause);
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }

  const show = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", show, { signal });
  signal.addEventListener("abort", close);
  open();
}
