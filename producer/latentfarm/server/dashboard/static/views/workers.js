/** The live workers: their rate, and what each of their slots renders. */

import { getAgain, post } from "../core/api.js";
import { fill, find, h, setText, syncList, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { ago, number, percent, plural, rate, workerCommand } from "../core/format.js";
import { mayAdminister } from "../core/session.js";
import { confirmed } from "../parts/dialogs.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { button, toast } from "../parts/toasts.js";

/** @typedef {import("../core/types.js").Worker} Worker */
/** @typedef {import("../core/types.js").Slot} Slot */

const POLL_MS = 2_000;
/** Workers whose slots one stream of events has. */
const MAX_WATCHED = 16;
const START = "Start one for each device of a machine: `latentfarm worker --devices all`";

/** @param {import("../core/router.js").Page} page */
export async function showWorkers({ root, signal, setTitle }) {
  setTitle("Workers");
  const models = h("ul", { class: "models" });
  const list = h("ul", { class: "workers" });
  const body = h("div", {}, reading("Reading the workers …"));
  root.append(h("div", { class: "title" }, h("h1", {}, "Workers"), models), body);
  let [timer, watched, stream] = [0, "none", new AbortController()];

  /** Follow the slots of the workers in view. */
  function watch() {
    const worker = [...list.children].filter(isInView).slice(0, MAX_WATCHED).map(nameOf).sort();
    if (worker.join() === watched) return;
    watched = worker.join();
    stream.abort();
    stream = new AbortController();
    const show = (/** @type {{worker: string, slots: Slot[]}} */ event) => {
      const card = [...list.children].find((each) => nameOf(each) === event.worker);
      if (card) updateSlots(card, event.slots);
    };
    follow({ worker, progress: 0 }, { slots: show }, AbortSignal.any([signal, stream.signal]));
  }

  const wait = (/** @type {Error} */ error) =>
    list.isConnected || fill(body, problem("The workers cannot be read", error));
  async function poll() {
    clearTimeout(timer);
    if (document.hidden) return;
    const reads = ["/api/workers", "/api/models"].map((path) => getAgain(path, { signal }, wait));
    const [{ workers }, served] = await Promise.all(reads);
    const create = () => h("li");
    syncList(models, served.models, (each) => each.model, create, updateModel);
    syncList(list, workers, (each) => each.worker, createWorker, updateWorker);
    if (!workers.length) fill(body, empty("No worker is running", "", h("p", {}, ...withCode(START))));
    else if (!list.isConnected) fill(body, list);
    watch();
    timer = setTimeout(poll, POLL_MS);
  }
  document.addEventListener("visibilitychange", poll, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  await poll();
}

/** @param {Element} card */
const nameOf = (card) => /** @type {HTMLElement} */ (card).dataset.key ?? "";

/** @param {Element} card */
function isInView(card) {
  const { top, bottom } = card.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** @param {HTMLElement} item @param {import("../core/types.js").Model} model */
function updateModel(item, { model, workers, pending, images_per_s }) {
  const facts = [model, plural(workers, "worker"), images_per_s && rate(images_per_s), `${number(pending)} pending`];
  const cure = workers ? "" : `; start one with ${workerCommand(model)}`;
  item.classList.toggle("warnings", !workers);
  const text = facts.filter(Boolean).join(" · ") + cure;
  if (item.textContent !== text.replaceAll("`", "")) fill(item, ...withCode(text));
}

/** @param {Worker} worker */
function createWorker({ worker, slots }) {
  const slot = () => {
    const preview = h("span", { class: "preview" }, h("img", { alt: "", hidden: true }), h("em"));
    return h("li", {}, h("a", {}, preview, h("span", { class: "name" })), h("progress", { hidden: true }), h("small"));
  };
  const draining = h("span", { class: "badge", data: { state: "paused" } }, "draining");
  const end = mayAdminister() && button("Drain …", () => drain(worker));
  const title = h("div", { class: "row" }, h("h2", {}, worker), draining, end);
  const [facts, pace, used] = ["facts", "pace", "used"].map((name) => h("p", { class: name }));
  const busy = h("progress", { "aria-label": `Busy share of ${worker}` });
  const list = h("ol", { class: "slots", "aria-label": `Slots of ${worker}` });
  list.append(...Array.from({ length: slots }, slot));
  return h("li", { class: "card worker" }, title, facts, pace, busy, used, list);
}

/** @param {HTMLElement} card @param {Worker} worker */
function updateWorker(card, { model, device_name, dtype, images, images_per_s, busy_share, draining, since }) {
  setText(find(card, ".facts"), [device_name, model, dtype].join(" · "));
  const pace = [images_per_s && rate(images_per_s), busy_share !== null && `busy ${percent(busy_share)}`];
  const past = [plural(images, "image"), `started ${ago(since)}`];
  setText(find(card, ".pace"), [...pace, ...past].filter(Boolean).join(" · "));
  /** @type {HTMLProgressElement} */ (find(card, "progress")).value = busy_share ?? 0;
  find(card, ".badge").hidden = !draining;
  for (const each of card.querySelectorAll("button")) each.hidden = draining;
}

/** @param {string} worker */
async function drain(worker) {
  const text = "It takes no more jobs, finishes its images or parks them, and ends; others go on with them.";
  if (!(await confirmed({ title: `Drain ${worker}?`, text, confirm: "Drain" }))) return;
  await post(`/api/workers/${encodeURIComponent(worker)}/drain`);
  toast(`${worker} takes no more jobs.`);
}

/** Show the images on a device: each keeps its place while others come and go. @param {Element} card @param {Slot[]} slots */
function updateSlots(card, slots) {
  const cells = /** @type {HTMLElement[]} */ ([...find(card, ".slots").children]);
  const left = new Map(slots.map((slot) => [slot.job, slot]));
  const kept = cells.map(({ dataset }) => left.get(dataset.job ?? ""));
  for (const slot of kept) left.delete(slot?.job ?? "");
  const others = left.values();
  setText(find(card, ".used"), `${number(slots.length)} of ${plural(cells.length, "slot")} in use`);
  cells.forEach((cell, place) => updateSlot(cell, kept[place] ?? others.next().value));
}

/** @param {HTMLElement} cell @param {Slot | undefined} slot */
function updateSlot(cell, slot) {
  const parts = cell.querySelectorAll("a, img, em, .name, progress, small");
  const [link, image, words, name, bar, step] = /** @type {any} */ (parts);
  cell.dataset.job = slot?.job ?? "";
  bar.hidden = !slot;
  image.hidden = !slot?.preview;
  setText(words, slot ? (slot.preview ? "" : "no preview yet") : "empty");
  setText(name, slot?.job ?? "");
  setText(step, slot ? `step ${slot.step} of ${slot.steps}` : "");
  if (!slot) return link.removeAttribute("href");
  if (slot.preview) image.src = slot.preview;
  link.href = `/batches/${slot.job.replace("/", "/images/")}`;
  bar.setAttribute("aria-label", `Steps of ${slot.job}`);
  [bar.max, bar.value] = [slot.steps, slot.step];
}
