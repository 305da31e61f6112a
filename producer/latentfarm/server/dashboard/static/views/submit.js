/** @param {import("../core/router.js").Page} page */
export function showSubmit({ root, setTitle }) {
  setTitle("Submit");
  root.append("Submit");
}
