/** @param {import("../core/router.js").Page} page */
export function showBatch({ root, setTitle }) {
  setTitle("Batch");
  root.append("Batch");
}
