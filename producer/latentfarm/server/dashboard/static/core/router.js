/** Which view is shown: the path chooses it, the query is its state, so that every view can be linked and reloaded. */

/**
 * A view's place on the page, and what ends with it.
 *
 * @typedef {object} Page
 * @property {HTMLElement} root where the view puts its elements; empty at first
 * @property {Record<string, string>} params the variable parts of the path
 * @property {URLSearchParams} query
 * @property {AbortSignal} signal aborted when another view is shown
 * @property {(title: string) => void} setTitle of the browser's tab
 */

/**
 * @typedef {object} Route
 * @property {RegExp} pattern of the path; its named groups are the params
 * @property {string} section which link of the navigation is current
 * @property {(page: Page) => void | Promise<void>} show
 */

/** @type {readonly Route[]} */
let routes = [];
/** @type {(route: Route | null) => void} */
let onShown = () => {};
let leaving = new AbortController();
let shownPath = "";

/**
 * Show the view of the current path, and follow links.
 *
 * @param {readonly Route[]} all
 * @param {(route: Route | null) => void} shown called before each view
 */
export function start(all, shown) {
  routes = all;
  onShown = shown;
  document.addEventListener("click", followLink);
  window.addEventListener("popstate", () => show());
  show();
}

/** @param {string} path with its query */
export function navigate(path) {
  history.pushState(null, "", path);
  show();
  window.scrollTo(0, 0);
}

/**
 * Change the query of the current path. The view stays; it has changed itself.
 *
 * @param {Record<string, string | number | null | undefined | readonly string[]>} values null and "" remove a parameter
 */
export function setQuery(values) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    query.delete(name);
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") query.append(name, String(each));
    }
  }
  history.replaceState(null, "", query.size ? `${location.pathname}?${query}` : location.pathname);
}

/** Show the current path again, as after a session has begun. */
export function show() {
  leaving.abort();
  leaving = new AbortController();
  const path = location.pathname;
  const route = routes.find((each) => each.pattern.test(path)) ?? null;
  onShown(route);
  const main = /** @type {HTMLElement} */ (document.getElementById("main"));
  const root = document.createElement("div");
  root.className = "view";
  main.replaceChildren(root);
  // keyboards and screen readers go on at the new content; the first page keeps the browser's own beginning
  if (shownPath && shownPath !== path) main.focus({ preventScroll: true });
  shownPath = path;
  const found = route?.pattern.exec(path)?.groups ?? {};
  const params = Object.fromEntries(Object.entries(found).map(([name, text]) => [name, decodeURIComponent(text)]));
  const setTitle = (/** @type {string} */ title) => (document.title = `${title} · latentfarm`);
  const page = { root, params, query: new URLSearchParams(location.search), signal: leaving.signal, setTitle };
  route?.show(page);
}

/** @param {MouseEvent} event */
function followLink(event) {
  const { button, metaKey, ctrlKey, shiftKey, altKey } = event;
  if (event.defaultPrevented || button || metaKey || ctrlKey || shiftKey || altKey) return;
  const link = event.target instanceof Element ? event.target.closest("a") : null;
  if (!link || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  if (link.hash || !routes.some((each) => each.pattern.test(link.pathname))) return;
  event.preventDefault();
  navigate(link.pathname + link.search);
}
