/** The view that begins a session: the server wants a key. */

import { find, fromTemplate, setText } from "../core/dom.js";
import { signIn } from "../core/session.js";

/**
 * @param {import("../core/router.js").Page} page
 * @param {() => void} onsignedin
 */
export function showSignIn({ root, setTitle }, onsignedin) {
  setTitle("Sign in");
  const form = /** @type {HTMLFormElement} */ (fromTemplate("sign-in"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await signIn(form.key.value);
      onsignedin();
    } catch (error) {
      setText(find(form, ".complaint"), error instanceof Error ? error.message : String(error));
      form.key.select();
    }
  });
  root.append(form);
  form.key.focus();
}
