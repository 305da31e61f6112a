/** @param {import("../core/router.js").Page} page */
export function showImage({ root, setTitle }) {
  setTitle("Image");
  root.append("Image");
}
