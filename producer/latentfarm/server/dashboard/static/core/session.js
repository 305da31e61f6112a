/** Who sends the requests of this browser, and what the key allows. */

import { ApiError, get, post, remove, useSession } from "./api.js";

/** @typedef {import("./types.js").Session} Session */

/** @type {Session | null} */
let session = null;
/** @type {() => void} */
let onSignedOut = () => {};

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
  onSignedOut = signedOut;
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
  session = null;
  useSession("", () => {});
}

/** @param {Session} found */
function keep(found) {
  session = found;
  useSession(found.csrf_token, () => onSignedOut());
}
