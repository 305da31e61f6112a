/** Decisions about a batch. What can be undone has an undo, what cannot needs a confirmation. */

import { batchPage, batchPath, post, remove } from "../core/api.js";
import { h } from "../core/dom.js";
import { plural } from "../core/format.js";
import { navigate } from "../core/router.js";
import { maySubmit } from "../core/session.js";
import { confirmed, entered } from "./dialogs.js";
import { button, toast } from "./toasts.js";

/** @typedef {import("../core/types.js").Batch} Batch */

const PAUSE = { reason: "in the dashboard" };

/**
 * @typedef {object} Action
 * @property {string} label
 * @property {(batch: Batch) => boolean} offered
 * @property {(batch: Batch) => Promise<void>} run
 */

/**
 * @param {Batch} batch
 * @param {string} verb
 * @param {object} [body]
 */
const decide = (batch, verb, body) => post(`${batchPath(batch.batch)}/${verb}`, body);

/** @param {Batch} batch */
const isActive = (batch) => ["opening", "open", "paused", "drafted"].includes(batch.state);

/** @param {Batch} batch */
const isRunning = (batch) => isActive(batch) && batch.state !== "paused";

/** @param {Batch} batch */
const hasRetryable = ({ errors, state }) =>
  state !== "cancelled" && Object.keys(errors).some((code) => code !== "invalid_row");

/**
 * Offer a way back from what was done.
 *
 * @param {Batch} batch
 * @param {string} done what was done, after the batch's name
 * @param {[verb: string, body?: object]} back
 */
const offerUndo = (batch, done, back) =>
  toast(`${batch.batch} ${done}`, { label: "Undo", onaction: () => decide(batch, ...back) });

/** @param {Batch} batch */
const hasChoice = ({ drafted }) => drafted > 0 && !location.pathname.endsWith("/gallery");

/** @param {Batch} batch */
const choose = async ({ batch }) => navigate(`${batchPage(batch)}/gallery`);

/** @param {Batch} batch @param {boolean} [now] put the jobs that run down as well */
async function pause(batch, now = false) {
  await decide(batch, "pause", { ...PAUSE, now });
  offerUndo(batch, `is paused. Jobs that run are ${now ? "put down where they are" : "finished"}.`, ["resume"]);
}

/** @param {Batch} batch */
export async function resume(batch) {
  await decide(batch, "resume");
  offerUndo(batch, "goes on.", ["pause", PAUSE]);
}

/** @param {Batch} batch */
async function cancel(batch) {
  const left = batch.pending + batch.leased + batch.drafted;
  const text = `${plural(left, "job")} will not be rendered to the end, for good. Finished images stay.`;
  if (!(await confirmed({ title: `Cancel ${batch.batch}?`, text, confirm: "Cancel the batch" }))) return;
  await decide(batch, "cancel");
  toast(`${batch.batch} is cancelled.`);
}

/**
 * Run failed jobs again.
 *
 * @param {Batch} batch
 * @param {string | null} [code] only those with this error code [default: all but those of invalid rows]
 */
export async function retry(batch, code = null) {
  const { retried } = await decide(batch, "retry", { code });
  toast(retried ? `${plural(retried, "job")} of ${batch.batch} will run again.` : "No failed job can run again.");
}

/** @param {Batch} batch */
async function setPriority(batch) {
  const text = "Batches of a higher priority run first. The default is 0.";
  const question = { title: "Priority", text, label: "From -1,000 to 1,000", type: "number", confirm: "Set" };
  const answer = await entered({ ...question, value: String(batch.priority) });
  if (answer === null || Number(answer) === batch.priority) return;
  await decide(batch, "priority", { priority: Number(answer) });
  offerUndo(batch, `has the priority ${Number(answer)}.`, ["priority", { priority: batch.priority }]);
}

/** @param {Batch} batch */
async function deleteBatch(batch) {
  const name = batch.batch;
  const text = `All images, results and prompts of ${plural(batch.total, "job")} are deleted from the bucket, for good.`;
  if (!(await confirmed({ title: `Delete ${name}?`, text, confirm: "Delete", typed: name }))) return;
  await remove(batchPath(name));
  toast(`${name} is being deleted.`);
}

/** @type {readonly Action[]} */
const ACTIONS = [
  { label: "Choose drafts", offered: hasChoice, run: choose },
  { label: "Pause", offered: isRunning, run: (batch) => pause(batch) },
  { label: "Pause now", offered: (batch) => isRunning(batch) && batch.leased > 0, run: (batch) => pause(batch, true) },
  { label: "Resume", offered: (batch) => batch.state === "paused", run: resume },
  { label: "Retry failed", offered: hasRetryable, run: retry },
  { label: "Priority …", offered: isActive, run: setPriority },
  { label: "Cancel …", offered: isActive, run: cancel },
  { label: "Delete …", offered: (batch) => !["deleting", "recovering"].includes(batch.state), run: deleteBatch },
];

/**
 * Return the buttons for a batch, empty if the key allows no decisions. `updateBatchActions` shows those that apply.
 *
 * @param {() => Batch} batch returns the batch as it is now
 */
export function batchActions(batch) {
  const buttons = ACTIONS.map(({ label, run }) => button(label, () => run(batch()), { hidden: true }));
  return h("div", { class: "row actions" }, ...(maySubmit() ? buttons : []));
}

/**
 * @param {Element} actions
 * @param {Batch} batch
 */
export function updateBatchActions(actions, batch) {
  const buttons = /** @type {HTMLElement[]} */ ([...actions.children]);
  buttons.forEach((each, place) => (each.hidden = !ACTIONS[place].offered(batch)));
}
