/** A sweep as a table: two fields in which the rows of the batch differ are its axes. */

import { batchPath, get, toJson } from "../core/api.js";
import { fill, find, h } from "../core/dom.js";
import { number } from "../core/format.js";
import { readAgain } from "../core/retry.js";
import { navigate, setQuery } from "../core/router.js";
import { batchHeader, followBatch } from "../parts/batch_header.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { thumbnail, updateThumbnail } from "../parts/thumbnail.js";

/** @import { Batch, Job } from "../core/types.js" */

const MOST_JOBS = 1_000;
const PAGE = 500;
const MOST_VALUES = 40;
const COMMAND = "latentfarm submit prompts.jsonl --sweep guidance_scale=2,4,7 --sweep seed=1..4";

/** @param {import("../core/router.js").Page} page */
export async function showGrid(page) {
  const { root, params, query, signal } = page;
  const header = batchHeader(page, "grid");
  const start = Number(query.get("start")) || 0;
  /** @type {Map<number, Job>} */
  const jobs = new Map();
  const range = h("p", { class: "row muted" });
  const body = h("div", {}, reading("Reading the jobs …"));
  root.append(header.element, range, body);
  const update = sweepTable(body, `/batches/${encodeURIComponent(params.name)}/images/`);
  const fail = (/** @type {unknown} */ error) => jobs.size || fill(body, problem("The jobs cannot be read", error));
  let [busy, again] = [false, true];

  async function read() {
    if (busy) return;
    busy = true;
    // those before the first that has not ended stay as they are, but for a retry
    const running = [...jobs.values()].find(({ state }) => state === "pending" || state === "leased");
    /** @type {number | null} */
    let from = again ? start : (running?.index ?? null);
    again = false;
    while (from !== null && from < start + MOST_JOBS) {
      const limit = Math.min(PAGE, start + MOST_JOBS - from);
      const options = { query: { start: from, limit }, signal };
      const found = await readAgain(() => get(`${batchPath(params.name)}/jobs`, options), signal, fail);
      for (const job of found.jobs) jobs.set(job.index, job);
      from = found.next;
    }
    update([...jobs.values()]);
    busy = false;
  }

  /** @param {Batch} batch */
  function progress(batch) {
    header.update(batch);
    const link = (/** @type {number} */ to, /** @type {string} */ text) =>
      to >= 0 && to < batch.total && h("a", { class: "button", href: `?start=${to}` }, text);
    const after = start + MOST_JOBS;
    const text = `Jobs ${number(start)} to ${number(Math.min(after, batch.total) - 1)}`;
    if (batch.total > MOST_JOBS) fill(range, text, link(start - MOST_JOBS, "Those before"), link(after, "Those after"));
    read().catch(fail);
  }
  const change = () => (again = true);
  await followBatch(page, {}, { progress, change });
}

/** Return the fields of a job's row as text. @param {Job} job @returns {Record<string, string>} */
function fieldsOf({ request, columns }) {
  const { scheduler_options: options = {}, ...others } = request;
  // schedulers may differ in nothing but their options
  if (Object.keys(options).length) others.scheduler += ` ${toJson(options)}`;
  const fields = Object.entries({ ...columns, ...others });
  return Object.fromEntries(fields.map(([name, value]) => [name, typeof value === "string" ? value : toJson(value)]));
}

/** Return the values of each field that has several, those with the fewest first. @param {Record<string, string>[]} rows */
function varyingFields(rows) {
  /** @type {Map<string, Set<string>>} */
  const found = new Map();
  for (const [name, value] of rows.flatMap(Object.entries)) found.set(name, (found.get(name) ?? new Set()).add(value));
  const several = [...found].filter(([, { size }]) => size > 1 && size <= MOST_VALUES);
  several.sort((a, b) => a[1].size - b[1].size);
  // numbers by size, texts as they come
  return new Map(several.map(([name, values]) => [name, [...values].sort((a, b) => Number(a) - Number(b) || 0)]));
}

/** Return what shows jobs in an element. @param {Element} body @param {string} images their path */
function sweepTable(body, images) {
  /** @type {Job[]} */
  let jobs = [];
  let shown = "";
  const selects = h("div", { class: "row" });
  const resize = () => table.style.setProperty("--cell", `${size.value}px`);
  const size = h("input", { type: "range", min: 48, max: 256, value: 128, oninput: resize });
  const compare = () => {
    const [a, b] = /** @type {NodeListOf<HTMLInputElement>} */ (table.querySelectorAll("input:checked"));
    if (b) navigate(`${images}${a.value}?against=${b.value}`);
  };
  const table = h("table", { onchange: compare });
  const box = h("div", { class: "sweep", tabindex: 0, role: "region", "aria-label": "Grid" }, table);
  const bar = h("div", { class: "row axes" }, selects, h("label", {}, h("span", {}, "Size"), size));
  const hint = h("p", { class: "muted" }, "Select two images to compare them.");
  const choose = (/** @type {Event} */ event) => {
    const { name, value } = /** @type {HTMLSelectElement} */ (event.target);
    setQuery({ [name]: value });
    render();
    find(selects, `[name="${CSS.escape(name)}"]`).focus();
  };

  function render() {
    const fields = varyingFields(jobs.map(fieldsOf));
    if (!fields.size) return fill(body, nothingVaries());
    if (!box.isConnected) fill(body, bar, box, hint);
    const choices = choicesOf(fields, new URLSearchParams(location.search));
    const key = toJson([choices, jobs.length]);
    if (key !== shown) {
      fill(selects, ...choices.map((choice) => selectOf(choice, choose)));
      fill(table, ...rowsOf(jobs, choices, images));
    }
    shown = key;
    for (const job of jobs) {
      const image = table.querySelector(`[data-job="${job.index}"]`);
      if (image?.firstElementChild) updateThumbnail(image.firstElementChild, job);
    }
  }

  return (/** @type {Job[]} */ now) => {
    jobs = now;
    render();
  };
}

/** @param {Job[]} jobs @param {Choice[]} choices @param {string} images */
function rowsOf(jobs, [x, y, ...fixed], images) {
  const rows = jobs.map((job) => ({ job, fields: fieldsOf(job) }));
  const fitting = rows.filter(({ fields }) => fixed.every(({ text, value }) => !value || fields[text] === value));
  const places = Map.groupBy(fitting, ({ fields }) => `${fields[x.value]}\n${fields[y.value]}`);
  /** @param {string} place */
  const cell = (place) => {
    const [found, ...more] = places.get(place) ?? [];
    if (!found) return h("td");
    const { index } = found.job;
    const link = h("a", { href: `${images}${index}`, data: { job: index } }, thumbnail());
    const text = more.length ? `${index} and ${more.length} more` : index;
    return h("td", {}, link, h("label", {}, h("input", { type: "checkbox", value: index }), text));
  };
  const titles = [`${y.value} by ${x.value}`, ...x.values].map((text) => h("th", { scope: "col" }, text));
  const body = y.values.map((down) =>
    h("tr", {}, h("th", { scope: "row" }, down), ...x.values.map((across) => cell(`${across}\n${down}`))),
  );
  return [h("thead", {}, h("tr", {}, ...titles)), h("tbody", {}, ...body)];
}

/** @typedef {{name: string, text: string, options: string[], value: string, values: string[]}} Choice */

/** Return the axes, then what may be fixed. @param {Map<string, string[]>} fields @param {URLSearchParams} query @returns {Choice[]} */
function choicesOf(fields, query) {
  const names = [...fields.keys()];
  const x = names.find((name) => name === query.get("x")) ?? names[0];
  const others = names.filter((name) => name !== x);
  const y = others.find((name) => name === query.get("y")) ?? others[0] ?? "";
  const fixed = others
    .filter((name) => name !== y)
    .map((text) => {
      const values = fields.get(text) ?? [];
      return { name: `at.${text}`, text, options: ["", ...values], value: query.get(`at.${text}`) ?? "", values };
    });
  return [
    { name: "x", text: "Columns", options: names, value: x, values: fields.get(x) ?? [] },
    { name: "y", text: "Rows", options: others, value: y, values: fields.get(y) ?? ["undefined"] },
    ...fixed,
  ];
}
/** @param {Choice} choice @param {(event: Event) => void} onchange */
function selectOf({ name, text, options, value }, onchange) {
  const made = options.map((each) => h("option", { value: each, selected: each === value }, each || "any"));
  return h("label", {}, h("span", {}, text), h("select", { name, onchange }, ...made));
}

const nothingVaries = () =>
  empty(
    "There is nothing to compare",
    "A grid has an axis for each field with 2 to 40 values in these jobs. A sweep gives it some:",
    h("code", {}, COMMAND),
  );
