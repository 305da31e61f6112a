/** A batch: each of its jobs as a cell, what failed, and its images. */

import { batchHeader, followBatch } from "../parts/batch_header.js";

/** @param {import("../core/router.js").Page} page */
export async function showBatch(page) {
  const header = batchHeader(page, "overview");
  page.root.append(header.element);
  await followBatch(page, {}, { progress: header.update });
}
