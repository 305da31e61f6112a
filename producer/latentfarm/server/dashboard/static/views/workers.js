/** The live workers: their rate, and what each of their slots renders. */

import { get, post } from "../core/api.js";
import { fill, find, h, setText, syncList, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { ago, number, percent, plural, rate } from "../core/format.js";
import { readAgain } from "../core/retry.js";
import { mayAdminister } from "../core/session.js";
import { confirmed } from "../parts/dialogs.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { toast, toastError } from "../parts/toasts.js";

/** @typedef {import("../core/types.js").Worker} Worker */
/** @typedef {import("../core/types.js").Slot} Slot */

const POLL_MS = 2_000;
const SETTLE_MS = 300;
/** Workers that one stream of events watches. */
const MAX_WATCHED = 16;
const START = "Start one for each device of a machine: `latentfarm worker --devices all`";

/** @param {import("../core/router.js").Page} page */
export async function showWorkers({ root, signal, setTitle }) {
  setTitle("Workers");
  const models = h("ul", { class: "models" });
  const list = h("ul", { class: "workers" });
  const body = h("div", {}, reading("Reading the workers …"));
  root.append(h("div", { class: "title" }, h("h1", {}, "Workers"), models), body);
  const watcher = watchSlots(list, signal);
  let timer = 0;

  const read = () => Promise.all([get("/api/workers", { signal }), get("/api/models", { signal })]);
  const wait = (/** @type {Error} */ error) =>
    list.isConnected || fill(body, problem("The workers cannot be read", error));
  const create = (/** @type {Worker} */ worker) => {
    const card = createWorker(worker);
    watcher.observe(card);
    return card;
  };
  async function poll() {
    clearTimeout(timer);
    if (document.hidden) return;
    const [found, served] = await readAgain(read, signal, wait);
    syncList(
      models,
      served.models,
      (each) => each.model,
      () => h("li"),
      updateModel,
    );
    syncList(list, found.workers, (each) => each.worker, create, updateWorker);
    if (!found.workers.length) fill(body, empty("No worker is running", "", ...withCode(START)));
    else if (!list.isConnected) fill(body, list);
    timer = setTimeout(poll, POLL_MS);
  }
  document.addEventListener("visibilitychange", poll, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  await poll();
}

/** @param {HTMLElement} item @param {import("../core/types.js").Model} model */
function updateModel(item, { model, workers, pending, images_per_s }) {
  const facts = [model, plural(workers, "worker"), workers && rate(images_per_s), `${number(pending)} pending`];
  const cure = `: start one with \`latentfarm worker --model ${model}\``;
  const text = facts.filter(Boolean).join(" · ") + (workers ? "" : cure);
  item.classList.toggle("warnings", !workers);
  if (item.dataset.text !== text) fill(item, ...withCode(text));
  item.dataset.text = text;
}

/** @param {Worker} worker */
function createWorker({ worker, slots }) {
  const ask = () => drain(worker).catch(toastError);
  const card = h(
    "li",
    { class: "card worker" },
    h("h2", {}, worker),
    h("span", { class: "badge", data: { state: "paused" } }, "draining"),
    mayAdminister() && h("button", { type: "button", class: "drain", onclick: ask }, "Drain …"),
    h("p", { class: "facts" }),
    h("p", { class: "pace" }),
    h("progress", { "aria-label": `Busy share of ${worker}` }),
    h("ol", { class: "slots", "aria-label": `Slots of ${worker}` }),
  );
  updateSlots(card, Array.from({ length: slots }));
  return card;
}

/** @param {HTMLElement} card @param {Worker} worker */
function updateWorker(card, { model, device_name, dtype, slots, images, images_per_s, busy_share, draining, since }) {
  setText(find(card, ".facts"), [device_name, model, dtype, plural(slots, "slot")].join(" · "));
  const busy = `busy ${percent(busy_share ?? 0)}`;
  setText(
    find(card, ".pace"),
    [rate(images_per_s), busy, plural(images, "image"), `started ${ago(since)}`].join(" · "),
  );
  /** @type {HTMLProgressElement} */ (find(card, "progress")).value = busy_share ?? 0;
  find(card, ".badge").hidden = !draining;
  for (const button of card.querySelectorAll("button")) button.hidden = draining;
}

/** @param {string} worker */
async function drain(worker) {
  const text = "It finishes the images that it has, takes no more, and ends. Its supervisor does not start it again.";
  if (!(await confirmed({ title: `Drain ${worker}?`, text, confirm: "Drain" }))) return;
  await post(`/api/workers/${encodeURIComponent(worker)}/drain`);
  toast(`${worker} takes no more jobs.`);
}

/**
 * Follow the slots of the workers that are in view. Return what observes which are.
 *
 * @param {HTMLElement} list
 * @param {AbortSignal} signal
 */
function watchSlots(list, signal) {
  /** @type {Set<string>} */
  const inView = new Set();
  /** @type {Map<string, (Slot | null)[]>} */
  const placed = new Map();
  let [watched, timer, stream] = ["none", 0, new AbortController()];

  /** @param {{worker: string, slots: Slot[]}} event */
  function show({ worker, slots }) {
    const card = [...list.children].find((each) => each instanceof HTMLElement && each.dataset.key === worker);
    if (!(card instanceof HTMLElement)) return;
    placed.set(worker, place(placed.get(worker) ?? [], slots, find(card, ".slots").childElementCount));
    updateSlots(card, placed.get(worker) ?? []);
  }

  function connect() {
    const worker = [...inView].sort().slice(0, MAX_WATCHED);
    if (watched === worker.join("\n")) return;
    watched = worker.join("\n");
    stream.abort();
    stream = new AbortController();
    follow({ worker, progress: 0 }, { slots: show }, AbortSignal.any([signal, stream.signal]));
  }

  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const name = /** @type {HTMLElement} */ (target).dataset.key ?? "";
      inView[isIntersecting ? "add" : "delete"](name);
    }
    clearTimeout(timer);
    timer = setTimeout(connect, SETTLE_MS);
  });
  signal.addEventListener("abort", () => {
    observer.disconnect();
    clearTimeout(timer);
  });
  connect();
  return observer;
}

/**
 * Return the images by place: each keeps its own while others come and go.
 *
 * @param {readonly (Slot | null)[]} before
 * @param {readonly Slot[]} slots
 * @param {number} size places that there are
 */
function place(before, slots, size) {
  const left = new Map(slots.map((slot) => [slot.job, slot]));
  const places = Array.from(
    { length: Math.max(size, slots.length) },
    (_, at) => left.get(before[at]?.job ?? "") ?? null,
  );
  for (const slot of places) left.delete(slot?.job ?? "");
  const next = left.values();
  return places.map((slot) => slot ?? next.next().value ?? null);
}

/** @param {HTMLElement} card @param {readonly (Slot | null | undefined)[]} slots undefined: not known yet */
function updateSlots(card, slots) {
  const items = slots.map((slot, at) => ({ slot, at }));
  const create = () =>
    h("li", {}, h("div", { class: "preview" }, h("img", { alt: "" }), h("span")), h("a"), h("progress"));
  syncList(
    find(card, ".slots"),
    items,
    ({ at }) => at,
    create,
    (cell, { slot }) => {
      const [image, link, bar] = ["img", "a", "progress"].map((each) => /** @type {any} */ (find(cell, each)));
      for (const each of [link, bar]) each.hidden = !slot;
      image.hidden = !slot?.preview;
      setText(find(cell, "span"), slot === null ? "empty" : slot && !slot.preview ? "no preview yet" : "");
      if (!slot) return;
      if (slot.preview) image.src = slot.preview;
      setText(link, slot.job);
      link.href = `/batches/${slot.job.replace("/", "/images/")}`;
      bar.setAttribute("aria-label", `${slot.job}, step ${slot.step} of ${slot.steps}`);
      [bar.value, bar.max] = [slot.step, slot.steps];
    },
  );
}
