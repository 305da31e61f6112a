/** Who sends the requests of this browser, and what the key allows. */

import { ApiError, get, post, remove, sender } from "./api.js";

/** @typedef {import("./types.js").Session} Session */

/** @type {Session | null} */
let session = null;

/** Whether the key allows to submit and decide. Views leave out what it does not allow. */
export const maySubmit = () => session?.scopes.includes("submit") ?? false;

/** Whether the key allows to drain workers. */
export const mayAdminister = () => session?.scopes.includes("admin") ?? false;

/** The name of the key; empty on a server without keys. */
export const keyName = () => (session?.csrf_token ? session.name : "");

/**
 * Return whether this browser has a session, or needs none.
 *
 * @param {() => void} signedOut called when the server wants a key from now on
 */
export async function restoreSession(signedOut) {
  sender.onSignedOut = signedOut;
  try {
    keep(await get("/api/session"));
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return false;
    throw error;
  }
}

/** @param {string} key */
export const signIn = async (key) => keep(await post("/api/session", { key }));

export async function signOut() {
  await remove("/api/session");
  [session, sender.csrfToken] = [null, ""];
}

/** @param {Session} found */
const keep = (found) => ([session, sender.csrfToken] = [found, found.csrf_token]);
