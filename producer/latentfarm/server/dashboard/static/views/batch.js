/** A batch: each of its jobs as a cell, what failed, and its images. */

import { batchPage } from "../core/api.js";
import { h, setText } from "../core/dom.js";
import { number } from "../core/format.js";
import { navigate, setQuery } from "../core/router.js";
import { WINDOW, afterEvent } from "../core/states.js";
import { batchFailures } from "../parts/batch_failures.js";
import { batchHeader, followBatch } from "../parts/batch_header.js";
import { batchImages } from "../parts/batch_images.js";
import { chips } from "../parts/chips.js";
import { reading } from "../parts/placeholder.js";
import { stateChips } from "../parts/state_bar.js";
import { Strip } from "../parts/strip.js";

/** @typedef {import("../core/types.js").Batch} Batch */
/** @typedef {import("../core/router.js").Page} Page */

/** @param {Page} page */
export function showBatch(page) {
  new Overview(page).open();
}

class Overview {
  #batch = /** @type {Batch | null} */ (null);
  #states = /** @type {Uint8Array} */ (new Uint8Array(0));
  /** The first job of the strip. */
  #start = 0;
  #following = new AbortController();
  /** Events `states` are unpacked one after the other. */
  #unpacked = Promise.resolve();
  #placeholder = reading("Reading the batch …");
  #window = h("p", { class: "muted" });
  #complaint = h("p", { class: "complaint", role: "alert" });
  #index = h("input", { type: "text", inputmode: "numeric", required: true, "aria-label": "Index of a job" });

  /** @param {Page} page */
  constructor(page) {
    const { query, params, signal } = page;
    this.page = page;
    const at = /^\d+$/.test(query.get("at") ?? "") ? Number(query.get("at")) : null;
    this.wanted = { state: new Set(query.getAll("state")), code: new Set(query.getAll("code")), at };
    this.header = batchHeader(page, "overview");
    this.failures = batchFailures(page);
    this.images = batchImages(page, this.wanted);
    this.states = chips("Only jobs that are", this.wanted.state, () => this.#filter());
    this.codes = chips("Only jobs that failed with", this.wanted.code, () => this.#filter());
    this.strip = new Strip((index) => {
      setQuery({ at: index });
      navigate(`${batchPage(params.name)}/images/${index}`);
    }, signal);
    this.jobs = h("section", { class: "jobs", "aria-label": "Jobs" });
    const filters = h("div", { class: "row" }, this.states.element, this.codes.element);
    this.jobs.append(filters, this.#controls(), this.#complaint, this.strip.element);
    page.root.append(this.header.element, this.#placeholder);
  }

  #controls() {
    const zoom = (/** @type {string} */ label, /** @type {string} */ text, /** @type {number} */ steps) =>
      h("button", { type: "button", "aria-label": label, onclick: () => this.strip.zoomBy(steps) }, text);
    const form = h("form", { class: "row" }, this.#index, h("button", {}, "Go to job"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#jump(this.#index.value.replaceAll(",", "").trim());
    });
    const zooms = [zoom("Zoom out", "−", -1), zoom("Zoom in", "+", 1), zoom("Show all jobs", "All", -Infinity)];
    return h("div", { class: "row controls" }, form, this.#window, h("div", { class: "row" }, ...zooms));
  }

  /** @param {string} text */
  #jump(text) {
    const total = this.#batch?.total ?? 0;
    const known = /^\d+$/.test(text) && Number(text) < total;
    setText(this.#complaint, known ? "" : `There is no job ${text}: write a number from 0 to ${number(total - 1)}.`);
    if (!known) return;
    this.wanted.at = Number(text);
    setQuery({ at: text });
    if (windowOf(this.wanted.at) === this.#start) this.strip.select(this.wanted.at);
    else this.open();
    this.#render();
  }

  #filter() {
    setQuery({ state: [...this.wanted.state], code: [...this.wanted.code] });
    this.#render();
  }

  /** Show the strip with the job that is wanted, and follow its jobs. */
  open() {
    this.#following.abort();
    this.#following = new AbortController();
    const signal = AbortSignal.any([this.page.signal, this.#following.signal]);
    this.#start = windowOf(this.wanted.at ?? 0);
    this.#states = new Uint8Array(0);
    const progress = (/** @type {Batch} */ batch) => {
      // a path that was written by hand
      if (this.#start > batch.total) return navigate(location.pathname);
      if (!this.#batch) this.#placeholder.replaceWith(this.jobs, this.failures.element, this.images.element);
      this.#batch = batch;
      this.#render();
    };
    const unpack = async (/** @type {any} */ event) => {
      const found = await afterEvent(this.#states, event);
      if (!signal.aborted) this.#showStates(found);
    };
    const states = (/** @type {any} */ event) => (this.#unpacked = this.#unpacked.then(() => unpack(event)));
    followBatch(this.page, { states: this.#start }, { progress, states }, signal);
  }

  /** @param {Uint8Array} states */
  #showStates(states) {
    const first = !this.#states.length;
    this.#states = states;
    this.strip.show(this.#start, states);
    if (first && this.wanted.at !== null) this.strip.select(this.wanted.at);
    this.#render();
  }

  #render() {
    const [batch, { state, code }] = [this.#batch, this.wanted];
    // only failed jobs have a code, and states do not have it
    this.strip.filter(code.size ? new Set(["failed"]) : state);
    if (!batch) return;
    this.header.update(batch);
    this.states.update(stateChips(batch));
    this.codes.update(Object.entries(batch.errors).map(([value, count]) => ({ value, label: value, count })));
    this.failures.update(batch);
    if (this.#states.length) this.images.update(batch, this.#states, this.#start);
    // whether a batch goes on is decided by the images of its canary: they come first
    const [images, isCanary] = [this.images.element, batch.paused_by === "canary"];
    const isFirst = images.nextElementSibling === this.jobs;
    if (isFirst !== isCanary) (isCanary ? this.header : this.failures).element.after(images);
    this.#index.placeholder = `0 to ${number(batch.total - 1)}`;
    const last = this.#start + this.#states.length - 1;
    const others = batch.total > WINDOW && last > 0;
    setText(this.#window, others ? `Jobs ${number(this.#start)} to ${number(last)} of ${number(batch.total)}` : "");
  }
}

/** Return the first job of the strip that has a job. @param {number} index */
const windowOf = (index) => Math.floor(index / WINDOW) * WINDOW;
