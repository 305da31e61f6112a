/**
 * What users decide about images: whether one is picked or rejected, and its rating. A decision is shown at once, and
 * stored in the bucket soon after. The gallery and the view of an image have this in common.
 */

import { batchPath, post, readAgain } from "../core/api.js";
import { h, setText } from "../core/dom.js";
import { plural } from "../core/format.js";
import { maySubmit } from "../core/session.js";
import { toast } from "./toasts.js";

/** @import { Job, Pick } from "../core/types.js" */
/** @typedef {{pick?: Pick, rating?: number | null}} Decision a field that it lacks stays */
/** @typedef {{job: Job, before: Decision, now: Decision}} Unstored `before` is what the bucket has */

const COLLECTED_MS = 400;
const MOST_AT_ONCE = 1_000;

/** @type {Map<string, Picks>} by batch: what is not stored yet outlives the view in which it was decided */
const picksOfBatches = new Map();

/** @param {string} batch */
export function picksOf(batch) {
  const found = picksOfBatches.get(batch) ?? new Picks(batch);
  picksOfBatches.set(batch, found);
  return found;
}

export class Picks {
  counts = { picked: 0, rejected: 0, rated: 0, picked_drafts: 0, rejected_drafts: 0 };
  /** Why decisions are not stored yet; empty if nothing is wrong. */
  problem = "";
  /** Called after a change of a decision, of `counts` or of `problem`. */
  onchange = () => {};
  /** @type {Map<number, Unstored>} */
  #unstored = new Map();
  #sending = false;

  /** @param {string} batch */
  constructor(batch) {
    this.path = `${batchPath(batch)}/picks`;
  }

  /**
   * Decide about jobs that have images. Returns what takes it back.
   *
   * @param {readonly Job[]} jobs
   * @param {Decision} decision
   * @returns {() => void}
   */
  decide(jobs, decision) {
    const before = jobs.map(({ pick = null, rating = null }) => ({ pick, rating }));
    jobs.forEach((job, place) => {
      const earlier = this.#unstored.get(job.index);
      const now = { ...earlier?.now, ...decision };
      Object.assign(job, decision);
      this.#unstored.set(job.index, { job, before: earlier?.before ?? before[place], now });
    });
    if (!this.#sending) this.#send();
    this.onchange();
    return () => jobs.forEach((job, place) => this.decide([job], before[place]));
  }

  /** Whether the bucket has every decision. */
  get stored() {
    return !this.#unstored.size;
  }

  /** Show what is not stored yet on a job that was read just now. @param {Job} job */
  restore(job) {
    const found = this.#unstored.get(job.index);
    if (found) found.job = Object.assign(job, found.now);
  }

  async #send() {
    this.#sending = true;
    window.addEventListener("beforeunload", warn);
    await new Promise((resolve) => setTimeout(resolve, COLLECTED_MS));
    while (this.#unstored.size) await this.#store([...this.#unstored].slice(0, MOST_AT_ONCE));
    window.removeEventListener("beforeunload", warn);
    this.#sending = false;
  }

  /** @param {[number, Unstored][]} sent */
  async #store(sent) {
    const body = { picks: sent.map(([index, { now }]) => ({ index, ...now })) };
    const wait = (/** @type {Error} */ error) => {
      this.problem = `${plural(this.#unstored.size, "pick is", "picks are")} not stored yet: ${error.message}`;
      this.onchange();
    };
    try {
      this.counts = await readAgain(() => post(this.path, body), new AbortController().signal, wait);
      for (const [index, entry] of sent) {
        const later = this.#unstored.get(index);
        if (later === entry) this.#unstored.delete(index);
        else if (later) later.before = { ...entry.before, ...entry.now };
      }
    } catch (error) {
      for (const { job, before } of this.#unstored.values()) Object.assign(job, before);
      this.#unstored.clear();
      toast(`The picks were taken back: ${error instanceof Error ? error.message : error}`, { kind: "error" });
    }
    this.problem = "";
    this.onchange();
  }
}

/** @param {Event} event */
const warn = (event) => event.preventDefault();

/**
 * Return the buttons to decide about an image; if the key does not allow that, a place for what was decided.
 *
 * @param {(decision: Decision) => void} ondecide
 */
export function pickControls(ondecide) {
  if (!maySubmit()) return h("p", { class: "picks" });
  /** @param {Pick} pick @param {string} sign @param {string} label */
  const button = (pick, sign, label) => {
    const toggle = () => ondecide({ pick: made.ariaPressed === "true" ? null : pick });
    const made = h("button", { type: "button", title: label, "aria-label": label, value: pick, onclick: toggle }, sign);
    return made;
  };
  const rate = () => ondecide({ rating: Number(rating.value) || null });
  const options = ["", 1, 2, 3, 4, 5].map((value) => h("option", { value }, value ? `★ ${value}` : "☆"));
  const rating = h("select", { title: "Rating", "aria-label": "Rating", onchange: rate }, ...options);
  return h("div", { class: "picks" }, button("picked", "✓", "Pick"), button("rejected", "✕", "Reject"), rating);
}

/** @param {HTMLElement} controls @param {Job} job */
export function updatePickControls(controls, { image, pick, rating }) {
  controls.hidden = !image;
  const rated = controls.querySelector("select");
  if (!rated) return setText(controls, [pick, rating && `★ ${rating}`].filter(Boolean).join(" · "));
  rated.value = String(rating ?? "");
  for (const button of controls.querySelectorAll("button")) button.ariaPressed = String(button.value === pick);
}
