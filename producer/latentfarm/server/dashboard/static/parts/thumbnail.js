/** A job's image, small; or why there is none. */

import { get } from "../core/api.js";
import { h, setText } from "../core/dom.js";
import { wordOf } from "./state_bar.js";

const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 60_000;

export function thumbnail() {
  let pause = FIRST_PAUSE_MS;
  const why = h("span", { class: "why" });

  async function failed() {
    const path = image.src;
    image.classList.add("failed");
    // an image element does not say why it has no image
    await get(path).catch((error) => setText(why, error.message));
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    if (image.isConnected && image.src === path) image.src = path;
  }

  function loaded() {
    pause = FIRST_PAUSE_MS;
    image.classList.remove("failed");
    setText(why, "");
  }

  const image = h("img", { loading: "lazy", decoding: "async", onload: loaded, onerror: failed });
  return h("span", { class: "thumbnail" }, image, why);
}

/**
 * @param {Element} element
 * @param {import("../core/types.js").Job} job
 */
export function updateThumbnail(element, { thumbnail: path, state, error, request }) {
  const [image, why] = /** @type {[HTMLImageElement, HTMLElement]} */ ([...element.children]);
  image.hidden = !path;
  image.alt = request.prompt ?? "";
  if (path && image.getAttribute("src") !== path) image.src = path;
  if (!path) setText(why, error ? `${error.code}: ${error.message}` : (wordOf(state) ?? state));
}
