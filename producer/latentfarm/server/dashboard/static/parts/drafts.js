/** The drafts of a batch: those that are picked are rendered to their end, others are discarded; both have a price. */

import { batchPath, get, post } from "../core/api.js";
import { h, setText } from "../core/dom.js";
import { duration, number, plural } from "../core/format.js";
import { maySubmit } from "../core/session.js";
import { confirmed } from "./dialogs.js";
import { button, toast } from "./toasts.js";

/** @import { Batch, Job, PickCounts } from "../core/types.js" */

/** After how many evaluations of the model a draft stopped. @param {Job} job */
export const describeDraft = ({ draft }) => (draft ? `draft, ${draft.evaluations} of ${draft.of}` : "");

/** @param {{evaluations: number, gpu_hours: number | null}} work */
const describeWork = ({ evaluations, gpu_hours: hours }) =>
  `${plural(evaluations, "evaluation")} of the model${hours === null ? "" : `, ${duration(3600 * hours)} of GPU time`}`;

/**
 * Return what decides about the drafts of a batch; hidden while it has none.
 *
 * @param {string} name of the batch
 * @param {() => void} ondecided
 */
export function draftDecisions(name, ondecided) {
  const path = batchPath(name);
  /** Carry out a decision, if the user confirms its price. @param {"finish" | "discard"} verb @param {string} [pick] */
  const decide = async (verb, pick) => {
    const { selected, drafts, price } = await get(`${path}/drafts/price`, { query: { pick } });
    const [finishing, work] = [verb === "finish", describeWork(price.finish)];
    const others = `${plural(drafts - selected, "other draft stays", "other drafts stay")}.`;
    const text = finishing ? `It takes ${work}. ${others}` : `It saves ${work}. There is no way back.`;
    const confirm = finishing ? "Finish" : "Discard";
    const title = `${confirm} ${plural(selected, "draft")}?`;
    if (!(await confirmed({ title, text, confirm, kind: finishing ? "primary" : "danger" }))) return;
    const { changed } = await post(`${path}/${verb}`, pick ? { pick } : { all: true });
    toast(`${plural(changed, "draft")} ${finishing ? "will be finished" : "discarded"}.`);
    ondecided();
  };
  const count = h("p");
  const finish = button("", () => decide("finish", "picked"), { class: "primary" });
  const reject = button("", () => decide("discard", "rejected"));
  const rest = button("Discard the rest …", () => decide("discard"));
  const choices = maySubmit() ? [finish, reject, rest] : [];
  const element = h("section", { class: "card row drafts", "aria-label": "Drafts", hidden: true }, count, ...choices);

  /** @param {Batch | null} batch @param {PickCounts} counts @param {boolean} stored whether all picks are */
  function update(batch, { picked_drafts: picked, rejected_drafts: rejected }, stored) {
    element.hidden = !batch?.drafted;
    setText(count, plural(batch?.drafted ?? 0, "draft"));
    setText(finish, `Finish ${number(picked)} picked …`);
    setText(reject, `Discard ${number(rejected)} rejected …`);
    // with the rest, nothing that is picked is discarded
    [finish.disabled, reject.disabled, rest.disabled] = [!picked, !rejected, picked > 0].map((each) => each || !stored);
    rest.title = picked ? "Finish the picked drafts first" : "";
  }

  return { element, update };
}
