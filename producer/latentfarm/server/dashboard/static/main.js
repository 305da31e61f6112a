/** The beginning of the page: the session, the navigation and the view of the current path. */

import { connectionLabel } from "./core/connection.js";
import { fill, h } from "./core/dom.js";
import { readAgain } from "./core/api.js";
import { show, start } from "./core/router.js";
import { keyName, maySubmit, restoreSession, signOut } from "./core/session.js";
import { chosenTheme, themeButton } from "./parts/theme.js";
import { empty, problem } from "./parts/placeholder.js";
import { toastError } from "./parts/toasts.js";
import { showSignIn } from "./views/sign_in.js";

/** @typedef {import("./core/router.js").Page} Page */
/** @typedef {import("./core/router.js").Route} Route */

const SECTIONS = Object.entries({ "/": "Batches", "/workers": "Workers", "/submit": "Submit" });

let signedIn = false;

/** @typedef {(page: Page) => void | Promise<void>} View */

/**
 * @param {string} pattern
 * @param {string} section
 * @param {() => Promise<View>} load reads the view's module when it is first shown
 * @returns {Route}
 */
function route(pattern, section, load) {
  /** @param {Page} page */
  async function guarded(page) {
    if (!signedIn) return showSignIn(page, () => enter(true));
    try {
      const view = await load();
      if (!page.signal.aborted) await view(page);
    } catch (error) {
      if (!page.signal.aborted) fill(page.root, problem("The page cannot be shown", error));
    }
  }
  return { pattern: new RegExp(`^${pattern}/?$`), section, show: guarded };
}

const BATCH = "/batches/(?<name>[^/]+)";
const ROUTES = [
  route("", "/", async () => (await import("./views/batches.js")).showBatches),
  route("/workers", "/workers", async () => (await import("./views/workers.js")).showWorkers),
  route("/submit", "/submit", async () => (await import("./views/submit.js")).showSubmit),
  route(BATCH, "/", async () => (await import("./views/batch.js")).showBatch),
  route(`${BATCH}/gallery`, "/", async () => (await import("./views/gallery.js")).showGallery),
  route(`${BATCH}/grid`, "/", async () => (await import("./views/grid.js")).showGrid),
  route(`${BATCH}/images/(?<index>\\d+)`, "/", async () => (await import("./views/image.js")).showImage),
  route("/.*", "", async () => showNothing),
];

/** @param {Page} page */
function showNothing({ root, setTitle }) {
  setTitle("Not found");
  root.append(empty("There is no such page", "", h("a", { href: "/" }, "Go to the batches")));
}

/** @param {Route | null} shown */
function updateNavigation(shown) {
  const visible = SECTIONS.filter(([path]) => signedIn && (path !== "/submit" || maySubmit()));
  const links = visible.map(([path, label]) =>
    h("a", { href: path, "aria-current": path === shown?.section ? "page" : null }, label),
  );
  fill(/** @type {Element} */ (document.getElementById("nav")), ...links);
  const name = keyName();
  const props = { class: "link", type: "button", onclick: exit, title: `Signed in as ${name}` };
  const end = h("button", props, "Sign out");
  const top = /** @type {Element} */ (document.getElementById("top-end"));
  fill(top, signedIn && connectionLabel(), themeButton(), signedIn && name && end);
}

/** Show the views of a session that has begun, or request a key. @param {boolean} begun */
function enter(begun) {
  if (signedIn === begun) return;
  signedIn = begun;
  show();
}

const leave = () => enter(false);
const exit = () => signOut().then(leave, toastError);

async function begin() {
  chosenTheme();
  const main = /** @type {Element} */ (document.getElementById("main"));
  const waiting = (/** @type {unknown} */ error) => fill(main, problem("The farm is not available", error));
  try {
    signedIn = await readAgain(() => restoreSession(leave), new AbortController().signal, waiting);
    start(ROUTES, updateNavigation);
  } catch (error) {
    fill(main, problem("The dashboard cannot begin", error));
  }
}

begin();
