/** A sweep as a table: two fields in which the rows of the batch differ are its axes. */

import { batchPage, batchPath, getAgain, oneAtATime, toJson } from "../core/api.js";
import { fill, find, h } from "../core/dom.js";
import { number } from "../core/format.js";
import { navigate, setQuery } from "../core/router.js";
import { batchHeader, followBatch } from "../parts/batch_header.js";
import { empty, problem, reading } from "../parts/placeholder.js";
import { thumbnail, updateThumbnail } from "../parts/thumbnail.js";

/** @import { Batch, Job } from "../core/types.js" */
/** @typedef {Map<string, string[]>} Fields the values of each field */
/** @typedef {{name: string, text: string, options: string[], value: string}} Choice */

const MOST_JOBS = 1_000;
const PAGE = 500;
const MOST_VALUES = 40;
/** Chosen for a field that is no axis, it lets every value in. */
const ANY = "any";
const NOTHING = "A grid needs a field that has 2 to 40 values in these jobs. A sweep gives it some:";
const COMMAND = "latentfarm submit prompts.jsonl --sweep guidance_scale=2,4,7 --sweep seed=1..4";

/** @param {import("../core/router.js").Page} page */
export async function showGrid(page) {
  const { root, params, query, signal } = page;
  const header = batchHeader(page, "grid");
  const start = Number(query.get("start")) || 0;
  const stop = start + MOST_JOBS;
  /** @type {Map<number, Job>} */
  const jobs = new Map();
  const range = h("p", { class: "row range" });
  const body = h("div", { class: "grid" }, reading("Reading the jobs …"));
  root.append(header.element, range, body);
  const update = sweepTable(body, `${batchPage(params.name)}/images/`);
  const fail = (/** @type {unknown} */ error) => jobs.size || fill(body, problem("The jobs cannot be read", error));
  let all = true;

  const read = oneAtATime(async () => {
    // but for a retry, those before the first that has not ended stay as they are
    const running = [...jobs.values()].find(({ state }) => ["pending", "leased", "drafted"].includes(state));
    let from = all ? start : (running?.index ?? stop);
    all = false;
    while (from < stop) {
      const options = { query: { start: from, limit: Math.min(PAGE, stop - from) }, signal };
      const found = await getAgain(`${batchPath(params.name)}/jobs`, options, fail);
      for (const job of found.jobs) jobs.set(job.index, job);
      from = found.next ?? stop;
    }
    update([...jobs.values()]);
  });

  /** @param {Batch} batch */
  function progress(batch) {
    header.update(batch);
    /** @param {number} to @param {string} text */
    const link = (to, text) => to >= 0 && to < batch.total && h("a", { class: "button", href: `?start=${to}` }, text);
    const text = `Jobs ${number(start)} to ${number(Math.min(stop, batch.total) - 1)}`;
    if (batch.total > MOST_JOBS) fill(range, text, link(start - MOST_JOBS, "Those before"), link(stop, "Those after"));
    read().catch(fail);
  }
  await followBatch(page, {}, { progress, change: () => (all = true) });
}

/** Return the fields of a job's row as text. @param {Job} job @returns {Record<string, string>} */
function fieldsOf({ request, columns }) {
  const { scheduler_options: options = {}, ...others } = request;
  // schedulers may differ in nothing but their options
  if (Object.keys(options).length) others.scheduler = `${others.scheduler ?? ""} ${toJson(options)}`;
  const fields = Object.entries({ ...columns, ...others });
  return Object.fromEntries(fields.map(([name, value]) => [name, typeof value === "string" ? value : toJson(value)]));
}

/** Return the fields with several values, those with the fewest first, texts last. @param {Job[]} jobs @returns {Fields} */
function varyingFields(jobs) {
  /** @type {Map<string, Set<string>>} */
  const found = new Map();
  for (const [name, value] of jobs.map(fieldsOf).flatMap(Object.entries)) {
    found.set(name, (found.get(name) ?? new Set()).add(value));
  }
  const several = [...found].filter(([, { size }]) => size > 1 && size <= MOST_VALUES);
  // prompts make long titles
  const place = (/** @type {[string, Set<string>]} */ [name, { size }]) =>
    size + (name.endsWith("prompt") ? MOST_VALUES : 0);
  several.sort((a, b) => place(a) - place(b));
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
  selects.addEventListener("change", ({ target }) => {
    const { name, value } = /** @type {HTMLSelectElement} */ (target);
    setQuery({ [name]: value });
    render();
    find(selects, `[name="${CSS.escape(name)}"]`).focus();
  });

  function render(now = jobs) {
    jobs = now;
    const fields = varyingFields(jobs);
    if (!fields.size) return fill(body, empty("There is nothing to compare", NOTHING, h("code", {}, COMMAND)));
    if (!box.isConnected) fill(body, bar, box, hint);
    const choices = choicesOf(fields, new URLSearchParams(location.search));
    const key = toJson([choices, jobs.length]);
    if (key !== shown) {
      fill(selects, ...choices.map(selectOf));
      fill(table, ...rowsOf(jobs, fields, choices, images));
    }
    shown = key;
    for (const job of jobs) {
      const element = table.querySelector(`[data-job="${job.index}"] > .thumbnail`);
      if (element) updateThumbnail(element, job);
    }
  }

  return render;
}

/** Return the axes, then the other fields. @param {Fields} fields @param {URLSearchParams} query @returns {Choice[]} */
function choicesOf(fields, query) {
  const names = [...fields.keys()];
  const x = names.find((name) => name === query.get("x")) ?? names[0];
  const others = names.filter((name) => name !== x);
  const y = others.find((name) => name === query.get("y")) ?? others[0] ?? "";
  const fixed = others.filter((name) => name !== y);
  return [
    { name: "x", text: "Columns", options: names, value: x },
    { name: "y", text: "Rows", options: others, value: y },
    ...fixed.map((text) => {
      const [name, values] = [`at.${text}`, fields.get(text) ?? []];
      return { name, text, options: [...values, ANY], value: query.get(name) ?? values[0] };
    }),
  ];
}

/** @param {Choice} choice */
function selectOf({ name, text, options, value }) {
  const made = options.map((each) => h("option", { value: each, selected: each === value }, each));
  return h("label", {}, h("span", {}, text), h("select", { name, "aria-label": text }, ...made));
}

/** @param {Job[]} jobs @param {Fields} fields @param {Choice[]} choices @param {string} images */
function rowsOf(jobs, fields, [{ value: x }, { value: y }, ...fixed], images) {
  const rows = jobs.map((job) => ({ index: job.index, at: fieldsOf(job) }));
  const fitting = rows.filter(({ at }) => fixed.every(({ text, value }) => value === ANY || at[text] === value));
  const places = Map.groupBy(fitting, ({ at }) => toJson([at[x], at[y]]));
  /** @param {string} across @param {string} [down] */
  const cell = (across, down) => {
    const [{ index } = { index: -1 }, ...more] = places.get(toJson([across, down])) ?? [];
    if (index < 0) return h("td", {}, h("span", { class: "muted" }, "No job"));
    const link = h("a", { href: `${images}${index}`, data: { job: index } }, thumbnail());
    const text = more.length ? `${index} and ${more.length} more` : index;
    return h("td", {}, link, h("label", {}, h("input", { type: "checkbox", value: index }), text));
  };
  const across = fields.get(x) ?? [];
  const body = (fields.get(y) ?? [undefined]).map((down) =>
    h("tr", {}, h("th", { scope: "row" }, down), ...across.map((value) => cell(value, down))),
  );
  const titles = across.map((text) => h("th", { scope: "col" }, text));
  return [h("thead", {}, h("tr", {}, h("td"), ...titles)), h("tbody", {}, ...body)];
}
