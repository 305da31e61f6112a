/** The view that begins a session: the server wants a key. */

import { h, withCode } from "../core/dom.js";
import { signIn } from "../core/session.js";

/**
 * @param {import("../core/router.js").Page} page
 * @param {() => void} onsignedin
 */
export function showSignIn({ root, setTitle }, onsignedin) {
  setTitle("Sign in");
  const key = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true });
  const complaint = h("p", { class: "complaint", role: "alert" });
  const text = withCode("This farm needs a key. Its operator makes one with `latentfarm key new NAME`.");
  const label = h("label", {}, h("span", {}, "Key"), key);
  const button = h("button", { class: "primary" }, "Sign in");
  const form = h(
    "form",
    { class: "card sign-in" },
    h("h1", {}, "Sign in"),
    h("p", {}, ...text),
    label,
    complaint,
    button,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await signIn(key.value);
      onsignedin();
    } catch (error) {
      complaint.textContent = error instanceof Error ? error.message : String(error);
      key.select();
    }
  });
  root.append(form);
  key.focus();
}
