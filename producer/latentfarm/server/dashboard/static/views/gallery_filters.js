/** The filters of the gallery, and what can be exported of it. */

import { batchPath } from "../core/api.js";
import { h, syncList } from "../core/dom.js";
import { chips } from "../parts/chips.js";
import { stateChips } from "../parts/state_bar.js";
import { copy } from "../parts/toasts.js";

/** @import { Batch } from "../core/types.js" */

const TYPING_MS = 300;
const PICKS = Object.entries({ picked: "picked", rejected: "rejected", none: "undecided" });

/**
 * @param {URLSearchParams} query of the page
 * @param {() => void} onchange
 */
export function galleryFilters(query, onchange) {
  const chosen = new Set(query.getAll("state").filter((each) => each !== "all"));
  /** The state of the jobs that are shown unless the user chooses: drafts are to be decided about. */
  let usual = "";
  const picks = new Set(query.getAll("pick"));
  const states = chips("Only jobs that are", chosen, onchange);
  const pickChips = chips("Only images that are", picks, onchange);
  pickChips.update(PICKS.map(([value, label]) => ({ value, label })));
  const ratings = ["", 1, 2, 3, 4, 5].map((value) => h("option", { value }, value ? `★ ${value} or more` : "Any"));
  const fields = {
    "Text of the prompt": h("input", { type: "search", name: "prompt", maxlength: 1000 }),
    Seed: h("input", { type: "number", name: "seed", min: 0 }),
    Rating: h("select", { name: "rating" }, ...ratings),
    "Error code": h("select", { name: "code" }),
  };
  const labels = Object.entries(fields).map(([label, field]) => h("label", {}, h("span", {}, label), field));
  let timer = 0;
  const typed = () => {
    clearTimeout(timer);
    timer = setTimeout(onchange, TYPING_MS);
  };
  const stay = (/** @type {Event} */ event) => event.preventDefault();
  const form = h("form", { class: "filters", role: "search", oninput: typed, onsubmit: stay }, ...labels);
  const showCodes = (/** @type {readonly string[]} */ codes) => {
    const all = new Set(["", ...query.getAll("code"), ...codes]);
    syncList(fields["Error code"], [...all], String, (value) => h("option", { value }, value || "Any"));
  };
  showCodes([]);
  for (const field of Object.values(fields)) field.value = query.get(field.name) ?? "";

  return {
    element: h("div", { class: "gallery-filters" }, form, states.element, pickChips.element),
    /** Return the filters as a query of jobs. A code is one of failed jobs, regardless of the states that are chosen. */
    query: () => {
      const texts = /** @type {Record<string, string>} */ (Object.fromEntries(new FormData(form)));
      return { ...texts, state: texts.code ? [] : [...chosen], pick: [...picks] };
    },
    /** Whether these are the states that are shown unless the user chooses. */
    areUsual: (/** @type {string[]} */ state) => state.join() === usual,
    /** Show what the batch has, drafts or images, unless the user has chosen. Return whether that is a change. */
    adapt: (/** @type {Batch} */ { drafted }) => {
      const state = drafted ? "drafted" : "done";
      if (state === usual || (usual ? [...chosen].join() !== usual : query.has("state"))) return false;
      chosen.clear();
      chosen.add((usual = state));
      return true;
    },
    update: (/** @type {Batch} */ batch) => {
      states.update(stateChips(batch));
      showCodes(Object.keys(batch.errors));
    },
  };
}

/** @param {string} batch */
export function exportChoices(batch) {
  const [path, command] = [batchPath(batch), `latentfarm fetch ${batch} --pick picked`];
  const props = { class: "button", download: true };
  const results = h("a", { ...props, href: `${path}/results?pick=picked` }, "Results of picked (JSON lines)");
  const preferences = h("a", { ...props, href: `${path}/preferences` }, "Preference set (Parquet)");
  const copied = h("button", { type: "button", onclick: () => copy(command) }, "Copy the command line");
  return h("div", { class: "actions row" }, results, preferences, copied, h("code", {}, command));
}
