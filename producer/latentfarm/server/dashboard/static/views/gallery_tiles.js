/** A page of images: a grid with a selection, which the keyboard moves through and decides about. */

import { batchPage } from "../core/api.js";
import { find, h, setText, syncList } from "../core/dom.js";
import { number, plural } from "../core/format.js";
import { maySubmit } from "../core/session.js";
import { describeDraft } from "../parts/drafts.js";
import { pickControls, updatePickControls } from "../parts/picks.js";
import { thumbnail, updateThumbnail } from "../parts/thumbnail.js";
import { toast } from "../parts/toasts.js";

/** @import { Job } from "../core/types.js" */
/** @import { Decision, Picks } from "../parts/picks.js" */

const CLEAR = { pick: null, rating: null };
/** @type {Record<string, Decision>} */
const DECISIONS = { p: { pick: "picked" }, x: { pick: "rejected" }, u: CLEAR, 0: CLEAR };
for (const rating of [1, 2, 3, 4, 5]) DECISIONS[rating] = { rating };

export class Tiles {
  element = h("div", { class: "tiles", role: "grid", "aria-label": "Images", "aria-multiselectable": "true" });
  selection = h("p", { role: "status" });
  /** @type {Map<number, Job>} */
  jobs = new Map();
  /** Indices of jobs. @type {Set<number>} */
  selected = new Set();
  active = -1;
  /** Where the selection begins. */
  anchor = -1;

  /** @param {string} batch @param {Picks} picks */
  constructor(batch, picks) {
    this.path = `${batchPage(batch)}/images`;
    this.picks = picks;
    this.element.addEventListener("keydown", (event) => this.onKey(event) && event.preventDefault());
    this.element.addEventListener("focusin", (event) => this.enter(indexOf(event)));
    // with Shift, a click selects images, neither text nor a new window
    this.element.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault());
    this.element.addEventListener("click", (event) => {
      if (!event.shiftKey) return;
      event.preventDefault();
      this.select(indexOf(event));
    });
  }

  /** @param {readonly Job[]} jobs */
  show(jobs) {
    this.jobs = new Map(jobs.map((job) => [job.index, job]));
    this.selected = new Set([...this.selected].filter((index) => this.jobs.has(index)));
    if (!this.jobs.has(this.active)) this.active = this.anchor = jobs[0]?.index ?? -1;
    this.update();
  }

  update() {
    for (const job of this.jobs.values()) this.picks.restore(job);
    const create = (/** @type {Job} */ job) => this.create(job.index);
    const update = (/** @type {HTMLElement} */ tile, /** @type {Job} */ job) => this.updateTile(tile, job);
    syncList(this.element, [...this.jobs.values()], ({ index }) => index, create, update);
    setText(this.selection, this.selected.size ? `${plural(this.selected.size, "image")} selected` : "");
  }

  /** Move the focus to an image [default: where it was last]. */
  focus(index = this.active) {
    /** @type {HTMLElement | null} */ (this.element.querySelector(`[data-key="${index}"] a`))?.focus();
  }

  /** @param {number} index */
  create(index) {
    const link = h("a", {}, thumbnail());
    const [badge, prompt] = [h("span", { class: "badge", data: { state: "drafted" } }), h("span", { class: "prompt" })];
    const text = h("p", {}, h("span", { class: "number" }, number(index)), " ", badge, " ", prompt);
    const controls = pickControls((decision) => this.decide(index, decision));
    const cells = [link, text, controls].map((each) => h("div", { role: "gridcell" }, each));
    return h("div", { class: "tile", role: "row" }, ...cells);
  }

  /** @param {HTMLElement} tile @param {Job} job */
  updateTile(tile, job) {
    tile.ariaSelected = String(this.selected.has(job.index));
    tile.dataset.pick = job.pick ?? "";
    find(tile, ".badge").hidden = job.state !== "drafted";
    setText(find(tile, ".badge"), describeDraft(job));
    setText(find(tile, ".prompt"), job.request.prompt ?? "");
    // from the image, the gallery is found again as it is now
    find(tile, "a").setAttribute("href", `${this.path}/${job.index}${location.search}`);
    updateThumbnail(find(tile, ".thumbnail"), job);
    updatePickControls(find(tile, ".picks"), job);
    for (const each of tile.querySelectorAll("a, button, select")) {
      each.setAttribute("tabindex", job.index === this.active ? "0" : "-1");
    }
  }

  /** @param {number} index */
  enter(index) {
    this.active = index;
    if (!this.selected.has(index)) {
      this.selected.clear();
      this.anchor = index;
    }
    this.update();
  }

  /** Select all from where the selection begins to an image. @param {number} index */
  select(index) {
    const all = [...this.jobs.keys()];
    const [first, last] = [all.indexOf(this.anchor), all.indexOf(index)].sort((one, other) => one - other);
    this.selected = new Set(all.slice(first, last + 1));
    this.focus(index);
    this.update();
  }

  /** @param {number} index @param {Decision} decision */
  decide(index, decision) {
    const chosen = this.selected.has(index) ? [...this.selected] : [index];
    const jobs = chosen.flatMap((each) => this.jobs.get(each) ?? []).filter((job) => job.image);
    if (!jobs.length || !maySubmit()) return;
    const undo = this.picks.decide(jobs, decision);
    const word = decision.pick ?? (decision.rating ? `rated ${decision.rating}` : "cleared");
    if (jobs.length > 1) toast(`${plural(jobs.length, "image")} ${word}.`, { label: "Undo", onaction: undo });
  }

  /** Return whether the key has a meaning here. @param {KeyboardEvent} event */
  onKey({ key, target, shiftKey, ctrlKey, metaKey, altKey }) {
    if (altKey || ctrlKey || metaKey || target instanceof HTMLSelectElement) return false;
    const name = key.toLowerCase();
    const all = [...this.jobs.keys()];
    const place = all.indexOf(this.active);
    const columns = getComputedStyle(this.element).gridTemplateColumns.split(" ").length;
    /** @type {Record<string, number>} */
    const steps = { arrowleft: -1, arrowright: 1, arrowup: -columns, arrowdown: columns, home: -place };
    const to = name === "end" ? all.at(-1) : all[place + steps[name]];
    if (name in DECISIONS) this.decide(this.active, DECISIONS[name]);
    else if (to !== undefined && shiftKey) this.select(to);
    else if (to !== undefined || name === "escape") {
      this.selected.clear();
      this.focus(to);
      this.enter(this.active);
    } else return name in steps;
    return true;
  }
}

/** @param {Event} event */
function indexOf({ target }) {
  const tile = target instanceof Element ? target.closest(".tile") : null;
  return tile instanceof HTMLElement ? Number(tile.dataset.key) : -1;
}
