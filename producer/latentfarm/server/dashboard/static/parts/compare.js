/** Two images over each other with a border between them, or their difference; and in words, how they differ. */

import { h } from "../core/dom.js";

/** @import { Job } from "../core/types.js" */

/** @param {Job[]} jobs two @param {HTMLImageElement[]} images of them, loaded */
export function comparison(jobs, images) {
  const canvas = h("canvas", { role: "img", "aria-label": "Difference of the images", hidden: true });
  const move = () => element.style.setProperty("--border", `${border.value}%`);
  // it is over the images, so to drag on them is to drag it
  const border = h("input", { type: "range", name: "border", step: 0.5, "aria-label": "Border", oninput: move });
  const change = () => {
    canvas.hidden = border.hidden;
    border.hidden = !canvas.hidden;
    toggle.ariaPressed = String(border.hidden);
  };
  const toggle = h("button", { type: "button", "aria-pressed": false, onclick: change }, "Difference");
  const words = drawDifference(images, canvas);
  const verdict = jobs[0].sha256 === jobs[1].sha256 ? "The files are the same, byte for byte." : words;
  const pair = h("div", { class: "pair" }, ...images, canvas, border);
  const names = h("div", { class: "names" }, ...jobs.map(({ job }) => h("span", {}, job)));
  const element = h("div", { class: "comparison" }, pair, names, h("p", {}, verdict), toggle);
  element.style.setProperty("--ratio", String(images[0].naturalWidth / images[0].naturalHeight));
  move();
  return element;
}

/**
 * Draw the difference of two images, amplified until its largest value is white, and return it in words.
 *
 * @param {HTMLImageElement[]} images
 * @param {HTMLCanvasElement} canvas
 */
function drawDifference(images, canvas) {
  const [a, b] = images.map(pixelsOf);
  const sizes = [a, b].map(({ width, height }) => `${width} x ${height}`);
  if (sizes[0] !== sizes[1]) return `The sizes differ: ${sizes.join(" and ")} pixels.`;
  let [largest, sum] = [0, 0];
  const values = a.data.map((value, at) => Math.abs(value - b.data[at]));
  for (const value of values) {
    largest = Math.max(largest, value);
    sum += value;
  }
  const shown = values.map((value, at) => (at % 4 === 3 ? 255 : (value * 255) / (largest || 1)));
  Object.assign(canvas, { width: a.width, height: a.height });
  canvas.getContext("2d")?.putImageData(new ImageData(shown, a.width), 0, 0);
  if (!largest) return "No pixel differs. The files do: the receipt in each names its job.";
  const mean = (sum / (3 * a.width * a.height)).toFixed(2);
  return `The pixels differ by ${mean} of 255 on average, and by ${largest} at most.`;
}

/** @param {HTMLImageElement} image */
function pixelsOf(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const context = /** @type {CanvasRenderingContext2D} */ (h("canvas", { width, height }).getContext("2d"));
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height);
}
