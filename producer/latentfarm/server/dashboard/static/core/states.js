/** The states of jobs, a byte each, as events bring them. */

/** The state of each byte. @type {readonly import("./types.js").JobState[]} */
export const STATE_OF_BYTE = ["pending", "leased", "done", "failed", "cancelled", "drafted"];

/** Jobs whose states an event has at most. */
export const WINDOW = 1_000_000;

/**
 * Return the states after an event `states`; those of before are changed.
 *
 * @param {Uint8Array} states
 * @param {{start: number, total: number, blocks: {start: number, states: string}[]}} event
 */
export async function afterEvent(states, { start, total, blocks }) {
  const found = await Promise.all(blocks.map((block) => inflated(block.states)));
  const length = Math.max(0, Math.min(total - start, WINDOW));
  const next = states.length === length ? states : new Uint8Array(length);
  if (next !== states) next.set(states.subarray(0, length));
  blocks.forEach((block, place) => next.set(found[place], block.start - start));
  return next;
}

/** @param {string} text base64 of gzip */
async function inflated(text) {
  const zipped = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}
