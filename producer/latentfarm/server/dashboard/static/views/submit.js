/** A submission: a file or prompts, the options, what they would enqueue, and then the batch. */

import { batchPage, getAgain, readAgain, upload } from "../core/api.js";
import { fill, find, h, setText, withCode } from "../core/dom.js";
import { follow } from "../core/events.js";
import { bytes, duration, number, percent, plural, workerCommand } from "../core/format.js";
import { navigate } from "../core/router.js";
import { keyName, maySubmit } from "../core/session.js";
import { empty } from "../parts/placeholder.js";
import { complain, createForm, optionsOf, sourceOf } from "./submit_form.js";

/** Options that the plan does not depend on. */
const UNPLANNED = ["name", "priority", "canary"];
const NOTHING = "Choose a file or write prompts: what they would enqueue is shown here.";
const UNSENT = "The server does not answer. Nothing is lost: submit again, and it continues where it stopped.";

/** What is entered outlives the view: a session may end in the midst of it. @type {HTMLFormElement | null} */
let kept = null;

/** @param {import("../core/router.js").Page} page */
export async function showSubmit({ root, signal, setTitle }) {
  setTitle("Submit");
  root.append(h("h1", {}, "Submit a batch"));
  if (!maySubmit()) {
    const cure = "It lacks the scope submit. The farm's operator makes one that has it with";
    return root.append(empty("This key cannot submit", cure, h("code", {}, "latentfarm key new NAME")));
  }
  if (kept?.dataset.owner !== keyName()) kept = createForm(keyName());
  const form = kept;
  root.append(form);
  const submission = new Submission(form);
  const listen = (/** @type {Node} */ on, /** @type {string} */ event, /** @type {(event: any) => void} */ handler) =>
    on.addEventListener(event, handler, { signal });
  listen(form, "input", ({ target }) => (UNPLANNED.includes(target.name) ? complain(form) : submission.change()));
  listen(form, "submit", (event) => {
    event.preventDefault();
    submission.submit();
  });
  const hasFile = (/** @type {DragEvent} */ { dataTransfer }) => dataTransfer?.types.includes("Files");
  listen(document, "dragover", (event) => hasFile(event) && event.preventDefault());
  listen(document, "drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    form.file.files = event.dataTransfer.files;
    submission.change();
  });
  signal.addEventListener("abort", () => submission.begin());
  // the page shows when the server is unavailable
  follow({ progress: 0 }, {}, signal);
  const { models } = await getAgain("/api/models", { signal });
  fill(find(form, "#models"), ...models.map((/** @type {any} */ { model }) => h("option", { value: model })));
  form.model.placeholder = (models.find((/** @type {any} */ { workers }) => workers) ?? models[0])?.model ?? "mini";
  if (!form.inert) submission.change();
}

/** What is entered, its plan, and sending it. */
class Submission {
  #status = h("p", { role: "status" });
  #sent = h("progress", { "aria-label": "Sent", hidden: true });
  #answer = h("div", { class: "answer" });
  #button = h("button", { class: "primary" }, "Submit");
  #running = new AbortController();
  #typing = 0;
  #lenient = {};

  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form;
    fill(find(form, ".plan"), h("h2", {}, "Plan"), this.#status, this.#sent, this.#answer, this.#button);
    this.change();
  }

  /** End what runs, and return the signal of what begins. */
  begin() {
    this.#running.abort();
    clearTimeout(this.#typing);
    this.#running = new AbortController();
    return this.#running.signal;
  }

  change() {
    this.begin();
    const source = sourceOf(this.form);
    complain(this.form);
    this.#offer("Submit", Boolean(source), {});
    const valid = this.form.checkValidity();
    this.#say(!source ? NOTHING : valid ? "Planning …" : "Correct the marked fields.", Boolean(source) && !valid);
    // of a large file, the server reads all rows for each plan
    if (source && valid) this.#typing = setTimeout(() => this.#plan(), source.size > 8_000_000 ? 3_000 : 400);
    else fill(this.#answer);
  }

  async #plan() {
    const until = this.begin();
    const wait = () => this.#say("The farm does not answer. The plan follows when it does.", true);
    try {
      const plan = await readAgain(() => this.#send("/api/plan?keep=0.1", until), until, wait);
      const without = plan.invalid ? ` without ${plural(plan.invalid, "invalid row")}` : "";
      // who has seen how many rows are invalid submits the others
      const lenient = plan.invalid ? { validate_first: false, max_invalid: 1 } : {};
      this.#offer(`Submit ${plural(plan.jobs, "image")}${without}`, plan.jobs > 0, lenient);
      this.#say(`What ${plan.source} would enqueue:`);
      fill(this.#answer, ...describe(plan));
    } catch (error) {
      if (until.aborted) return;
      fill(this.#answer);
      this.#refuse(error);
    }
  }

  async submit() {
    const until = this.begin();
    this.form.inert = true;
    try {
      const { batch } = await this.#send("/api/batches", until, this.#lenient);
      kept = null;
      navigate(batchPage(batch));
    } catch (error) {
      this.form.inert = false;
      if (!until.aborted) (this.#refuse(error) ?? this.#button).focus();
    }
  }

  /** @param {string} text @param {boolean} [wrong] */
  #say(text, wrong = false) {
    setText(this.#status, text);
    this.#status.classList.toggle("complaint", wrong);
  }

  /** @param {string} label @param {boolean} possible @param {object} lenient options for invalid rows */
  #offer(label, possible, lenient) {
    setText(this.#button, label);
    this.#button.disabled = !possible;
    this.#lenient = lenient;
  }

  /** Say what is wrong; return the field that it is about. @param {any} error */
  #refuse(error) {
    const field = complain(this.form, error.param, error.message.replace(/^options: /, ""));
    this.#say(field ? "Correct the marked field." : error.status === 0 ? UNSENT : error.message, true);
    // the plan lists them
    if (error.code === "invalid_rows") this.#plan();
    return field;
  }

  /** @param {string} path @param {AbortSignal} signal @param {object} [more] options */
  #send(path, signal, more) {
    const [body, file] = [new FormData(), /** @type {File} */ (sourceOf(this.form))];
    body.append("options", JSON.stringify({ ...optionsOf(this.form), ...more }));
    body.append("file", file);
    const onProgress = (/** @type {number} */ share) => {
      const part = `Sending ${bytes(share * file.size)} of ${bytes(file.size)} …`;
      this.#say(share < 1 ? part : "The server reads the rows …");
      [this.#sent.hidden, this.#sent.value] = [share === 1, share];
    };
    return upload(path, body, { signal, onProgress }).finally(() => (this.#sent.hidden = true));
  }
}

/** @param {any} plan */
function describe(plan) {
  const time = (/** @type {number | null} */ hours) => (hours === null ? "unknown" : duration(3600 * hours));
  const facts = [
    ["Images", number(plan.jobs)],
    ["Rows", number(plan.rows)],
    ["Duplicate rows", number(plan.duplicates)],
    ["By default", `${plural(plan.num_inference_steps, "step")}, guidance ${plan.guidance_scale}`],
    ["Size", plan.size_bytes === null ? "unknown" : bytes(plan.size_bytes)],
    ["GPU time", time(plan.gpu_hours)],
    plan.drafts && ["Drafts", plural(plan.drafts.made.steps, "step")],
    plan.drafts && ["Saved if 10% are finished", percent(plan.drafts.saved.steps / plan.steps)],
    plan.workers && [`With ${plural(plan.workers, "worker")}`, time(plan.hours)],
  ];
  const start = `No worker serves ${plan.model}. Its jobs wait until one does: ${workerCommand(plan.model)}`;
  const notes = Object.entries(plan.notes).map(([note, rows]) => h("li", {}, `${note} (${plural(rows, "row")})`));
  const problems = plan.problems.map((/** @type {string} */ text) => h("li", {}, text));
  const more = plan.invalid - problems.length;
  return [
    h("dl", { class: "facts" }, ...facts.flatMap((fact) => (fact ? [h("dt", {}, fact[0]), h("dd", {}, fact[1])] : []))),
    plan.workers === 0 && h("p", { class: "warnings" }, ...withCode(start)),
    h("ul", { class: "notes" }, ...notes),
    plan.invalid > 0 && h("h3", {}, plural(plan.invalid, "invalid row")),
    h("ul", { class: "problems" }, ...problems, more > 0 && h("li", {}, `and ${number(more)} more`)),
  ];
}
