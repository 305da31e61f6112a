/** @param {import("../core/router.js").Page} page */
export function showWorkers({ root, setTitle }) {
  setTitle("Workers");
  root.append("Workers");
}
