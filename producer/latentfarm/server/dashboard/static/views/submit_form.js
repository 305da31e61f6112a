/** The fields of a submission, named by their parameters of the API. Those that are empty are not sent. */

import { find, fromTemplate, h, setText } from "../core/dom.js";
import { bytes } from "../core/format.js";

const FORMATS = "txt, jsonl, json, csv, tsv or parquet, also with .gz; or drop one anywhere on this page";
const NAME = { pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "a-z, 0-9, - and _", placeholder: "from the file" };
const PIXELS = { type: "number", min: 64, max: 2048, step: 8, placeholder: "the model's" };
const DRAFT = { type: "number", min: 0, step: "any", placeholder: "0.3, or 8 steps" };
const SWEEPS = { rows: 2, placeholder: "guidance_scale=3,5,7.5\nseed=1..4" };
const RARE = "More options";
const GROUPS = ["Batch", "Images, unless a row sets it", RARE];
/** @type {[group: number, name: string, label: string, attributes: object][]} */
const FIELDS = [
  [0, "name", "Name", NAME],
  [0, "model", "Model", { list: "models", placeholder: "mini" }],
  [0, "priority", "Priority", { type: "number", min: -1000, max: 1000, placeholder: "0" }],
  [0, "canary", "Canary images", { type: "number", min: 0, max: 10_000, placeholder: "none" }],
  [1, "defaults.num_inference_steps", "Steps", { type: "number", min: 1, placeholder: "25" }],
  [1, "defaults.guidance_scale", "Guidance scale", { type: "number", min: 0, step: "any", placeholder: "7.5" }],
  [1, "defaults.width", "Width", PIXELS],
  [1, "defaults.height", "Height", PIXELS],
  [1, "defaults.seed", "Seed", { type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, placeholder: "one a job" }],
  [1, "defaults.num_images_per_prompt", "Images per prompt", { type: "number", min: 1, placeholder: "1" }],
  [1, "defaults.draft", "Draft after", DRAFT],
  [1, "defaults.negative_prompt", "Negative prompt", { placeholder: "what the images must not show" }],
  [2, "defaults.scheduler", "Scheduler", { placeholder: "such as dpm++2m" }],
  [2, "defaults.image_format", "Image format", { placeholder: "png, webp or jpeg" }],
  [2, "sweeps", "Sweeps: each row with each value; a field a line", SWEEPS],
  [2, "dynamic_prompts", "Dynamic prompts: choose one of {a|b}", { type: "checkbox" }],
];

/** @param {string} owner the name of the key whose form it is */
export function createForm(owner) {
  const form = /** @type {HTMLFormElement} */ (fromTemplate("submission"));
  form.dataset.owner = owner;
  find(form, ".remove").addEventListener("click", () => {
    form.file.value = "";
    form.file.dispatchEvent(new Event("input", { bubbles: true }));
    form.file.focus();
  });
  const groups = GROUPS.map((title, place) => {
    const fields = h("div", { class: "fields" }, ...FIELDS.filter(([group]) => group === place).map(createField));
    if (title === RARE) return h("details", { class: "card" }, h("summary", {}, title), fields);
    return h("fieldset", { class: "card" }, h("legend", {}, title), fields);
  });
  find(form, ".entries").append(...groups);
  return form;
}

/** @param {(typeof FIELDS)[number]} field */
function createField([, name, label, attributes]) {
  const props = { name, autocomplete: "off", "aria-describedby": `${name}-complaint`, ...attributes };
  const input = h(name === "sweeps" ? "textarea" : "input", props);
  const complaint = h("p", { class: "complaint", id: `${name}-complaint` });
  return h("div", { class: "field", data: { name } }, h("label", {}, h("span", {}, label), input), complaint);
}

/** @param {HTMLFormElement} form @returns {HTMLInputElement[]} */
const inputsOf = (form) => [...form.querySelectorAll(/** @type {"input"} */ (".field input, .field textarea"))];

/** Return the chosen file, or one of the prompts that are written; null if there are none. @param {HTMLFormElement} form */
export function sourceOf(form) {
  /** @type {[File | undefined, string]} */
  const [file, text] = [form.file.files[0], form.text.value];
  setText(find(form, ".chosen"), file ? `${file.name}, ${bytes(file.size)}` : FORMATS);
  find(form, ".remove").hidden = !file;
  find(form, ".prompts").hidden = Boolean(file);
  return file ?? (text.trim() ? new File([text], "prompts.txt") : null);
}

/** Return the options as the API has them. @param {HTMLFormElement} form */
export function optionsOf(form) {
  /** @type {Record<string, any>} */
  const options = { model: form.model.placeholder, defaults: {} };
  for (const { name, type, checked, value } of inputsOf(form)) {
    const text = value.trim();
    if (!text || (type === "checkbox" && !checked)) continue;
    const found = { number: Number(text), checkbox: true, textarea: text.split("\n") }[type] ?? text;
    if (name.startsWith("defaults.")) options.defaults[name.slice(9)] = found;
    else options[name] = found;
  }
  return options;
}

/** Show a complaint at the field that it is about, and the browser's at the others; return that field.
 *  @param {HTMLFormElement} form @param {string | null} [param] @param {string} [message] */
export function complain(form, param = null, message = "") {
  for (const input of inputsOf(form)) {
    const own = input.name === param ? message : input.validationMessage;
    setText(find(form, `[id="${input.name}-complaint"]`), own);
    input.setAttribute("aria-invalid", String(Boolean(own)));
    if (own) input.closest("details")?.setAttribute("open", "");
  }
  return inputsOf(form).find(({ name }) => name === param);
}
