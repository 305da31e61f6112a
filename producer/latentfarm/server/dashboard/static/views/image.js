/** One image, large, with its receipt; over another one, or over what its row gives when it is rendered again. */

import { batchPage, batchPath, get, getAgain, oneAtATime, post, readAgain, toJson } from "../core/api.js";
import { fill, h, setText } from "../core/dom.js";
import { follow } from "../core/events.js";
import { plural } from "../core/format.js";
import { navigate } from "../core/router.js";
import { maySubmit } from "../core/session.js";
import { retry } from "../parts/batch_actions.js";
import { batchHeader, followBatch } from "../parts/batch_header.js";
import { comparison } from "../parts/compare.js";
import { describeDraft } from "../parts/drafts.js";
import { pickControls, picksOf, updatePickControls } from "../parts/picks.js";
import { problem, reading } from "../parts/placeholder.js";
import { wordOf } from "../parts/state_bar.js";
import { button, copy } from "../parts/toasts.js";

/** @import { Batch, Job, Slot } from "../core/types.js" */
/** @import { Page } from "../core/router.js" */

/** Fields of a job that are not of its receipt, or shown apart from it. */
const APART = "request timings columns error image thumbnail parameters intermediates pick rating".split(" ");
const OTHER = /^(?:(.+)\/)?(\d+)$/;

/** Jobs of the batches that were shown: the keys go on while the next image is read. @type {Map<string, number>} */
const totals = new Map();

/** @param {Page} page */
export async function showImage(page) {
  const { root, params, query, signal, setTitle } = page;
  const header = batchHeader(page, "");
  const picks = picksOf(params.name);
  /** @type {Batch} */
  let batch;
  /** @type {Job | undefined} */
  let job;
  let shown = new AbortController();
  const stage = h("div", { class: "stage", tabindex: 0, role: "group", "aria-label": "Image" }, reading("Reading …"));
  const [trace, summary, facts] = ["trace", "summary", "receipt"].map((name) => h("div", { class: name }));
  const h2 = h("h2", {}, `Job ${params.index}`);
  const moves = h("div", { class: "row moves" }, ...movesFrom(page, totals.get(params.name) ?? 0));
  const controls = pickControls((decision) => job && picks.decide([job], decision));
  const side = h("div", { class: "side" }, h2, moves, controls, summary, againstForm(page), facts);
  root.append(header.element, h("div", { class: "image-view" }, stage, trace, side));
  picks.onchange = () => job && updatePickControls(controls, job);
  document.addEventListener("keydown", press, { signal });
  setTitle(`${params.name}/${params.index}`);
  const fail = (/** @type {unknown} */ error) => {
    if (stage.querySelector(".large")) return;
    job = undefined;
    fill(stage, problem("This image cannot be read", error));
  };
  const readJob = (/** @type {string} */ name, /** @type {string} */ index) =>
    getAgain(`${batchPath(name)}/jobs/${index}`, { signal }, fail);

  const read = oneAtATime(async () => {
    /** @type {Job} */
    const found = await readJob(params.name, params.index);
    picks.restore(found);
    if (toJson(found) === toJson(job)) return;
    job = found;
    shown.abort();
    shown = new AbortController();
    const { intermediates } = found;
    updatePickControls(controls, job);
    fill(summary, ...describe(job, batch));
    fill(facts, ...receiptOf(job));
    const strip = h("img", { src: intermediates, alt: "From noise to the image" });
    fill(trace, intermediates && h("a", { href: intermediates, target: "_blank" }, strip));
    const [, name = params.name, index] = OTHER.exec(query.get("against") ?? "") ?? [];
    const jobs = job.image && index ? [job, await readJob(name, index)] : [job];
    const missing = jobs.find(({ image }) => !image);
    if (missing) return fill(stage, waiting(missing, batch, AbortSignal.any([signal, shown.signal])));
    const images = await Promise.all(jobs.map((each) => load(each, signal, fail)));
    fill(stage, jobs.length > 1 ? comparison(jobs, images) : images[0]);
  });

  const update = () => read().catch((error) => signal.aborted || fail(error));
  const progress = (/** @type {Batch} */ now) => {
    if (totals.get(now.batch) !== now.total) fill(moves, ...movesFrom(page, now.total));
    totals.set(now.batch, now.total);
    batch = now;
    header.update(now);
    if (job?.state !== "done") update();
  };
  await followBatch(page, {}, { progress, change: update });
}

/** Return a job's image when it is loaded. @param {Job} job @param {AbortSignal} signal @param {(error: unknown) => void} onProblem */
async function load({ image, request }, signal, onProblem) {
  const path = image ?? "";
  const element = h("img", { class: "large", alt: request.prompt, onclick: zoom });
  const read = () => {
    element.src = path;
    // an image does not say why it is not there
    return element.decode().catch(() => get(path, { signal }));
  };
  await readAgain(read, signal, onProblem);
  return element;
}

/** @param {Page} page @param {number | string} index @param {string} [against] */
function pathTo({ params, query }, index, against = "") {
  const changed = new URLSearchParams(query);
  changed.delete("against");
  if (against) changed.set("against", against);
  return `${batchPage(params.name)}/images/${index}?${changed}`;
}

/** @param {string} text @param {string | false} href @param {string} [key] that is pressed for it */
const link = (text, href, key) => h("a", { class: "button", href, "aria-keyshortcuts": key }, text);

/** @param {Page} page @param {number} total */
function movesFrom(page, total) {
  const [index, against] = [Number(page.params.index), page.query.get("against") ?? ""];
  return [
    link("← Previous", index > 0 && pathTo(page, index - 1, against), "ArrowLeft"),
    link("Next →", index + 1 < total && pathTo(page, index + 1, against), "ArrowRight"),
    button("Zoom", zoom, { "aria-keyshortcuts": "Z" }),
    link("Gallery", pathTo(page, "../gallery")),
  ];
}

/** Return what chooses the image to compare with. @param {Page} page */
function againstForm(page) {
  const { index } = page.params;
  const against = page.query.get("against") ?? "";
  const [, batch = "", other = index] = /^(.+\/)?(\d+)$/.exec(against) ?? [];
  /** @param {string} text @param {number} by */
  const beside = (text, by) => link(text, pathTo(page, index, `${batch}${Math.max(0, Number(other) + by)}`));
  const input = h("input", { value: against, required: true, pattern: "(.+/)?[0-9]+", placeholder: "17 or BATCH/17" });
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    navigate(pathTo(page, index, input.value));
  };
  const choice = [h("label", {}, h("span", {}, "Compare with"), input), h("button", {}, "Compare")];
  const more = [beside("Previous one", -1), beside("Next one", 1), against && link("End", pathTo(page, index))];
  return h("form", { class: "row", onsubmit: submit }, ...choice, ...more);
}

/** @param {KeyboardEvent} event */
function press({ key, target, altKey, ctrlKey, metaKey }) {
  // arrows scroll what is larger than its place
  const scrolled = key.startsWith("Arrow") ? ", .pixels, .trace" : "";
  const taken = target instanceof Element && target.closest(`input, select, textarea, dialog${scrolled}`);
  if (taken || altKey || ctrlKey || metaKey) return;
  const shortcut = CSS.escape(key.length === 1 ? key.toUpperCase() : key);
  /** @type {HTMLElement | null} */ (document.querySelector(`[aria-keyshortcuts="${shortcut}"]`))?.click();
}

/** Show a pixel of the image as one of the screen, or fit the image into its place again. */
function zoom() {
  const image = /** @type {HTMLImageElement | null} */ (document.querySelector(".stage > .large"));
  const pixels = image?.parentElement?.classList.toggle("pixels");
  if (image) image.style.width = pixels ? `${image.naturalWidth / devicePixelRatio}px` : "";
}

/** Return why a job has no image. @param {Job} job @param {Batch} batch that is shown @param {AbortSignal} signal */
function waiting(job, batch, signal) {
  const { state, worker, error, attempts } = job;
  const preview = h("img", { alt: "The image so far", hidden: true });
  const text = h("p", {}, error?.message);
  const slots = (/** @type {{slots: Slot[]}} */ event) => {
    for (const slot of event.slots.filter((each) => each.job === job.job)) {
      setText(text, `Step ${slot.step} of ${slot.steps}`);
      preview.hidden = !slot.preview;
      if (slot.preview) preview.src = slot.preview;
    }
  };
  if (state === "leased") follow({ worker, progress: 0 }, { slots }, signal);
  const title = `${job.job} ${error ? `failed: ${error.code}` : `is ${wordOf(state)}`}`;
  const tried = (error || attempts > 1) && h("p", {}, plural(attempts, "attempt"));
  const cure = error?.code === "invalid_row" && h("p", {}, "Correct the row, and submit it in a new batch.");
  const mayRetry = error && !cure && maySubmit() && job.job.startsWith(`${batch.batch}/`);
  const again = mayRetry && button("Retry all with this code", () => retry(batch, error.code));
  return h("div", { class: "placeholder", role: "status" }, h("h2", {}, title), preview, text, tried, cure || again);
}

/** @param {Job} job @param {Batch} batch */
function describe(job, batch) {
  const { request, image, parameters } = job;
  const actions = [
    "prompt" in request && button("Copy JSONL row", () => copy(toJson(request))),
    parameters && button("Copy parameters", () => copy(parameters)),
    image && h("a", { class: "button", href: image, download: job.job.replace("/", "-") }, "Download"),
    image && maySubmit() && button("Render again and compare", () => renderAgain(job, batch)),
  ];
  const draft = job.state === "drafted" && h("p", { class: "badge", data: { state: "drafted" } }, describeDraft(job));
  return [draft, h("p", { class: "prompt" }, request.prompt), h("div", { class: "row" }, ...actions)];
}

/** @param {Job} job */
function receiptOf(job) {
  const { request, timings = {}, columns = {} } = /** @type {any} */ (job);
  const groups = {
    Parameters: Object.entries(request).filter(([name]) => name !== "prompt"),
    Receipt: Object.entries(job).filter(([name]) => !APART.includes(name)),
    "Timings in seconds": Object.entries(timings),
    Columns: Object.entries(columns),
  };
  const lists = Object.entries(groups).filter(([, fields]) => fields.length);
  return lists.flatMap(([title, fields]) => [h("h3", {}, title), h("dl", {}, ...fields.map(field))]);
}

/** @param {[string, any]} field */
function field([name, value]) {
  const text = typeof value === "object" && value ? toJson(value) : String(value ?? "");
  return h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, text || "–"));
}

/** Submit the row of a job as a batch of one, and compare. @param {Job} job @param {Batch} batch */
async function renderAgain({ job, index, request, model }, { batch, priority }) {
  const end = `-${index}-again-${Date.now().toString(36)}`;
  const body = { name: batch.slice(0, 64 - end.length) + end, model, priority, rows: [request] };
  const made = await post("/api/batches", body);
  navigate(`${batchPage(made.batch)}/images/0?${new URLSearchParams({ against: job })}`);
}
