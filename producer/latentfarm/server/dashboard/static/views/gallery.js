/** @param {import("../core/router.js").Page} page */
export function showGallery({ root, setTitle }) {
  setTitle("Gallery");
  root.append("Gallery");
}
