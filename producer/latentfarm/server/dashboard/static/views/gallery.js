/** The images of a batch, page by page: to look through, to decide about, to export. */

import { batchPath, getAgain } from "../core/api.js";
import { fill, fromTemplate, h, setText } from "../core/dom.js";
import { number, plural } from "../core/format.js";
import { setQuery } from "../core/router.js";
import { batchHeader, followBatch } from "../parts/batch_header.js";
import { draftDecisions } from "../parts/drafts.js";
import { menu } from "../parts/menu.js";
import { picksOf } from "../parts/picks.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { button, toastError } from "../parts/toasts.js";
import { exportChoices, galleryFilters } from "./gallery_filters.js";
import { Tiles } from "./gallery_tiles.js";

/** @import { Batch, Job } from "../core/types.js" */
/** @import { Page } from "../core/router.js" */

const PAGE = 60;

/** @param {Page} page */
export function showGallery(page) {
  const header = batchHeader(page, "gallery");
  const gallery = new Gallery(page);
  page.root.append(header.element, ...gallery.elements);
  const progress = (/** @type {Batch} */ batch) => {
    header.update(batch);
    gallery.update(batch);
  };
  return followBatch(page, {}, { progress });
}

class Gallery {
  start = 0;
  /** Where the next page begins. @type {number | null} */
  next = null;
  /** Where the pages before began. @type {number[]} */
  before = [];
  /** @type {Job[]} */
  jobs = [];
  search = new AbortController();
  /** Why the images cannot be read. */
  trouble = "";
  /** The batch as it is, and as it was when the page was read. */
  batch = /** @type {Batch | null} */ (null);
  seen = /** @type {Batch | null} */ (null);
  body = h("div", { class: "gallery-body" }, reading("Reading the images …"));
  counts = h("p", { class: "muted" });
  status = h("p", { role: "status" });
  warning = h("p", { class: "warnings", role: "status" });
  stop = button("Stop", () => this.end());
  fresh = button("", () => this.read(this.start, this.before));
  back = button("Previous", () => this.read(this.before.at(-1) ?? this.startBefore(), this.before.slice(0, -1)));
  forth = button("Next", () => this.read(this.next ?? 0, [...this.before, this.start]));
  target = h("input", { type: "number", min: 0, required: true, "aria-label": "Job", placeholder: "Job" });
  keys = menu("Keys", fromTemplate("keys"), "Keys");

  /** @param {Page} page */
  constructor({ params, query, signal }) {
    this.path = batchPath(params.name);
    this.start = Number(query.get("start")) || 0;
    this.signal = signal;
    this.picks = picksOf(params.name);
    this.picks.onchange = () => this.showPicks();
    this.tiles = new Tiles(params.name, this.picks);
    this.filters = galleryFilters(query, () => this.read(0));
    this.drafts = draftDecisions(params.name, () => this.read(this.start, this.before));
    const exported = menu("Export", exportChoices(params.name), "Export");
    const jump = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.tiles.focus();
      this.read(Number(this.target.value));
    };
    const form = h("form", { class: "row", onsubmit: jump }, this.target, h("button", {}, "Jump"));
    const texts = h("div", { class: "row" }, this.status, this.tiles.selection, this.warning);
    this.elements = [
      h("div", { class: "row gallery-tools" }, this.counts, this.keys, exported),
      this.filters.element,
      this.drafts.element,
      this.body,
      h("div", { class: "gallery-bar" }, texts, this.stop, this.fresh, this.back, this.forth, form),
    ];
    document.addEventListener("keydown", (event) => this.onKey(event), { signal });
  }

  readPicks() {
    const read = getAgain(`${this.path}/picks`, { signal: this.signal });
    read.then((counts) => this.showPicks(counts)).catch((error) => this.signal.aborted || toastError(error));
  }

  showPicks(counts = this.picks.counts) {
    const { picked, rejected, rated } = (this.picks.counts = counts);
    setText(this.counts, `${number(picked)} picked · ${number(rejected)} rejected · ${number(rated)} rated`);
    setText(this.warning, this.picks.problem);
    this.drafts.update(this.batch, counts, this.picks.stored);
    this.tiles.update();
  }

  /** @param {Batch} batch as it is now */
  update(batch) {
    const before = this.batch;
    this.batch = batch;
    this.target.max = String(batch.total - 1);
    if (before?.drafted !== batch.drafted) this.readPicks();
    this.adapt(before ? 0 : this.start, !before);
    this.showTurns();
    // an empty page has nothing that could move
    if (!this.jobs.length && !this.fresh.hidden) this.fresh.click();
  }

  /** If nothing is shown, read what the batch has now, drafts or images. @param {number} start @param {boolean} first */
  adapt(start, first) {
    if (!this.jobs.length && this.batch && (this.filters.adapt(this.batch) || first)) this.read(start);
    if (this.batch) this.filters.update(this.batch);
  }

  /** Show the page of the jobs from `start` on that fit. @param {number} start @param {number[]} [before] */
  read(start, before = []) {
    if (this.signal.aborted) return;
    this.search.abort();
    this.search = new AbortController();
    Object.assign(this, { start, before, next: start, seen: this.batch, trouble: "" });
    const signal = AbortSignal.any([this.signal, this.search.signal]);
    this.readPage(signal).catch((error) => {
      if (signal.aborted) return;
      this.end();
      this.fail(error);
    });
  }

  /** @param {AbortSignal} signal */
  async readPage(signal) {
    const query = this.filters.query();
    const state = this.filters.areUsual(query.state) ? null : query.state.length ? query.state : "all";
    setQuery({ ...query, state, start: this.start || null });
    const focused = this.tiles.element.contains(document.activeElement);
    const fail = (/** @type {Error} */ error) => this.fail(error);
    /** @type {Job[]} */
    const jobs = [];
    while (this.next !== null && jobs.length < PAGE) {
      this.showTurns();
      const part = { ...query, start: this.next, limit: PAGE - jobs.length };
      /** @type {{jobs: Job[], next: number | null}} */
      const found = await getAgain(`${this.path}/jobs`, { query: part, signal }, fail);
      [this.next, this.trouble] = [found.next, ""];
      jobs.push(...found.jobs);
      this.jobs = jobs;
      this.tiles.show(jobs);
      if (jobs.length && !this.tiles.element.isConnected) fill(this.body, this.tiles.element);
      if (focused && document.activeElement === document.body) this.tiles.focus();
    }
    this.end();
  }

  /** End the search: the page is full, no job is left, or the user stops it. */
  end() {
    this.search.abort();
    if (!this.jobs.length) fill(this.body, nothing());
    this.showTurns();
    // its last draft may be gone since it was read
    this.adapt(0, false);
  }

  /** @param {unknown} error */
  fail(error) {
    if (!this.jobs.length) fill(this.body, problem("The images cannot be read", error, location.search && linkToAll()));
    this.trouble = error instanceof Error ? error.message : String(error);
    this.showTurns();
  }

  /** Where the page before may begin, after a jump: before as many jobs as this one reaches over. */
  startBefore() {
    return Math.max(0, this.start - Math.max(PAGE, (this.next ?? 0) - this.start));
  }

  /** How many images and drafts came since the page was read, of the states that are shown. */
  get newer() {
    const [{ batch, seen }, { state }] = [this, this.filters.query()];
    const shown = /** @type {const} */ (["done", "drafted"]).filter((each) => !state.length || state.includes(each));
    return batch && seen ? shown.reduce((sum, each) => sum + Math.max(0, batch[each] - seen[each]), 0) : 0;
  }

  /** Show how far the search is, or what the page has, and where to go from it. */
  showTurns() {
    const [busy, first, last] = [!this.search.signal.aborted, this.jobs[0], this.jobs.at(-1)];
    const range = first && last ? `Jobs ${number(first.index)} to ${number(last.index)}` : "";
    const searching = `Searching from job ${number(this.next ?? 0)} on; ${number(this.jobs.length)} found`;
    setText(this.status, this.trouble || (busy ? searching : range));
    for (const each of [this.status, this.stop]) each.classList.toggle("searching", busy);
    this.stop.hidden = !busy;
    this.fresh.hidden = busy || !this.newer;
    setText(this.fresh, plural(this.newer, "new image"));
    this.back.disabled = !this.start;
    this.forth.disabled = busy || this.next === null;
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const { target, key } = event;
    const within = target instanceof Node && this.tiles.element.contains(target);
    if (!within && target !== document.body && target !== document.getElementById("main")) return;
    const name = key.toLowerCase();
    this.keys.open = name === "?";
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (name === "j") this.target.focus();
    else if (name === "n" || (within && name === "pagedown")) this.forth.click();
    else if (name === "b" || (within && name === "pageup")) this.back.click();
    else if (name === "arrowright" && !within) this.tiles.focus();
    else if (name !== "?") return;
    event.preventDefault();
  }
}

const linkToAll = () => h("a", { class: "button", href: location.pathname }, "Show all images");

function nothing() {
  if (location.search) return empty("Nothing fits these filters", "", linkToAll());
  return empty("No images yet", "They are here as soon as jobs are done.");
}
