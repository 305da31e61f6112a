/** Elements, made and kept up to date. */

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * Return a new element.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [props] attributes; `on...` are listeners, `data` is the dataset, `class` the classes;
 *   null, undefined and false leave an attribute out
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/**
 * Return those of the children that are there.
 *
 * @param {readonly Child[]} children
 */
function present(children) {
  return children
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (typeof child === "number" ? String(child) : /** @type {Node | string} */ (child)));
}

/**
 * Replace the children of an element.
 *
 * @param {Element} parent
 * @param {...Child} children
 */
export function fill(parent, ...children) {
  parent.replaceChildren(...present(children));
}

/**
 * Set a text; an equal one is left alone, so that a selection in it stays.
 *
 * @param {Element} element
 * @param {string | number} text
 */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = String(text);
}

/**
 * Keep a list of elements equal to a list of items: by key, elements are made, updated, moved and removed, so that
 * focus, selection and loaded images stay.
 *
 * @template Item
 * @param {Element} parent
 * @param {readonly Item[]} items
 * @param {(item: Item) => string | number} key
 * @param {(item: Item) => HTMLElement} create
 * @param {(element: HTMLElement, item: Item) => void} [update] called for new elements too
 */
export function syncList(parent, items, key, create, update) {
  /** @type {Map<string, HTMLElement>} */
  const known = new Map();
  for (const child of /** @type {Iterable<HTMLElement>} */ (parent.children)) known.set(child.dataset.key ?? "", child);
  /** @type {Element | null} */
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = known.get(name);
    known.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    update?.(element, item);
    if (element === next) next = element.nextElementSibling;
    else parent.insertBefore(element, next);
  }
  for (const element of known.values()) element.remove();
}

/**
 * Return a text of the server with its commands, which are between backticks, as code.
 *
 * @param {string} text
 * @returns {Child[]}
 */
export function withCode(text) {
  return text.split("`").map((part, place) => (place % 2 ? h("code", {}, part) : part));
}

/**
 * Return the first element within another that matches.
 *
 * @param {ParentNode} parent
 * @param {string} selector
 * @returns {HTMLElement}
 */
export function find(parent, selector) {
  const found = parent.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`there is no ${selector}`);
  return found;
}

/** Return a copy of the element that index.html has in a template. @param {string} id */
export const fromTemplate = (id) =>
  /** @type {HTMLElement} */ (
    /** @type {HTMLTemplateElement} */ (find(document, `#${id}`)).content.firstElementChild?.cloneNode(true)
  );
