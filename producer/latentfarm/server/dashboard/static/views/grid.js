/** @param {import("../core/router.js").Page} page */
export function showGrid({ root, setTitle }) {
  setTitle("Grid");
  root.append("Grid");
}
