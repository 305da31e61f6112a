/** Reading again while the server, Redis or the bucket is unavailable. */

import { ApiError } from "./api.js";

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 8_000;

/**
 * Return what `read` returns; after an error that is temporary, call it again, until `signal` is aborted.
 *
 * @template Value
 * @param {() => Promise<Value>} read
 * @param {AbortSignal} signal
 * @param {(error: ApiError) => void} onProblem called with each temporary error
 * @returns {Promise<Value>} never settles if `signal` is aborted first
 */
export async function readAgain(read, signal, onProblem) {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      return await read();
    } catch (error) {
      if (signal.aborted) return new Promise(() => {});
      if (!(error instanceof ApiError) || !error.temporary) throw error;
      onProblem(error);
      await sleep(Math.max(pause, 1000 * error.retryAfter));
      if (signal.aborted) return new Promise(() => {});
    }
  }
}

/** @param {number} ms */
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Return a function that calls `act`, never twice at a time: a call meanwhile lets it run once more afterwards.
 *
 * @param {() => Promise<void>} act
 */
export function oneAtATime(act) {
  let [busy, due] = [false, false];
  return async () => {
    due = true;
    if (busy) return;
    busy = true;
    try {
      while (due) {
        due = false;
        await act();
      }
    } finally {
      busy = false;
    }
  };
}
