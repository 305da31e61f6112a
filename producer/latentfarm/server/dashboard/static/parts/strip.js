/** A cell for each job, in rows on a canvas: from so small that all are seen to as large as a finger. */

import { h, setText } from "../core/dom.js";
import { number } from "../core/format.js";
import { STATE_OF_BYTE } from "../core/states.js";
import { wordOf } from "./state_bar.js";

const HEIGHT = 320;
/** Sizes of cells and jobs in each, by rising size. */
const GROUPED = [40, 28, 20, 14, 9, 6, 4, 2].map((jobs) => [2, jobs]);
const ZOOMS = [...GROUPED, ...[2, 3, 4, 6, 8, 12, 16, 24].map((size) => [size, 1])];
/** The sizes from which there are gaps between cells, and in which a single job is shown. */
const [LARGE, SHOWN] = [6, 16];
/** A cell of several jobs has the last of these states that one of them has: a failed job is seen among thousands. */
const URGENCY = ["done", "cancelled", "pending", "drafted", "leased", "failed"];
/** How opaque those are that are done, below the dots of others, and those that are not wanted. */
const [CALM, FADED] = [0.5, 0.15];
const DRAGGED = 5;

export class Strip {
  #states = /** @type {Uint8Array} */ (new Uint8Array(0));
  #start = 0;
  #levels = [{ cell: 1, jobs: 1, columns: 1, rows: 0 }];
  #zoom = 0;
  #cursor = -1;
  #pointed = -1;
  #dragged = 0;
  #frame = 0;
  #image = new ImageData(1, 1);
  #ranks = STATE_OF_BYTE.map((state) => URGENCY.indexOf(state));
  /** Of states by their urgency: faded ones, then those that are wanted. */
  #colors = new Uint32Array(2 * URGENCY.length);
  #canvas = h("canvas");
  #marker = h("span", { class: "marker" });
  #sheet = h("div", { class: "sheet" }, this.#canvas, this.#marker);
  #scroller = h("div", { class: "scroller", tabindex: "0", role: "application" }, this.#sheet);
  #text = h("p", { class: "point", role: "status" });
  #open;

  /**
   * @param {(index: number) => void} open called with a job that has an image or an error
   * @param {AbortSignal} signal
   */
  constructor(open, signal) {
    this.#open = open;
    const hint = "Arrow keys, Home and End move the cursor, Enter opens its job. + and −, or Ctrl and the wheel, zoom.";
    this.element = h("div", { class: "strip" }, this.#scroller, this.#text, h("p", { id: "hint" }, hint));
    this.#scroller.setAttribute("aria-describedby", "hint");
    this.#listen();
    const recolor = () => this.#readColors();
    const observers = [new ResizeObserver(() => this.#measure()), new MutationObserver(recolor)];
    observers[0].observe(this.#scroller);
    observers[1].observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor, { signal });
    signal.addEventListener("abort", () => observers.forEach((each) => each.disconnect()));
  }

  /**
   * @param {number} start index of the first job
   * @param {Uint8Array} states
   */
  show(start, states) {
    const resized = states.length !== this.#states.length;
    if (start !== this.#start) this.#cursor = -1;
    [this.#start, this.#states] = [start, states];
    this.#scroller.setAttribute("aria-label", `${number(states.length)} jobs from ${number(start)} on, a cell each`);
    if (resized) this.#measure();
    this.#redraw();
  }

  /** Fade all jobs but those in these states; none means all. @param {Set<string>} wanted */
  filter(wanted) {
    const shown = (/** @type {string} */ state) => !wanted.size || wanted.has(state);
    this.#ranks = STATE_OF_BYTE.map((state) => URGENCY.indexOf(state) + (shown(state) ? URGENCY.length : 0));
    this.#redraw();
  }

  /** Move the cursor to a job, and show it large. @param {number} index */
  select(index) {
    this.#cursor = Math.min(index - this.#start, this.#states.length - 1);
    this.zoomBy(Math.max(0, this.#levels.findIndex(({ cell }) => cell >= SHOWN * devicePixelRatio) - this.#zoom));
  }

  /**
   * @param {number} steps
   * @param {number} [job] that is then at the height `y`
   */
  zoomBy(steps, job = this.#middle, y = this.#scroller.clientHeight / 2) {
    this.#zoom = Math.max(0, Math.min(this.#zoom + steps, this.#levels.length - 1));
    const { cell, jobs, columns, rows } = this.#level;
    this.#sheet.style.height = cssPixels(rows * cell);
    this.#scroller.scrollTop = ((Math.floor(job / jobs / columns) + 0.5) * cell) / devicePixelRatio - y;
    this.#redraw();
  }

  /** The job that stays where it is: the cursor's, or one in the middle. */
  get #middle() {
    const { cell, jobs, columns } = this.#level;
    const middle = (this.#scroller.scrollTop + this.#scroller.clientHeight / 2) * devicePixelRatio;
    return this.#cursor < 0 ? Math.floor(middle / cell) * columns * jobs : this.#cursor;
  }

  get #level() {
    return this.#levels[Math.min(Math.round(this.#zoom), this.#levels.length - 1)];
  }

  /** Find the sizes of cells: in the first one all jobs are seen, if need be several in a cell. */
  #measure() {
    const width = Math.floor(this.#scroller.clientWidth * devicePixelRatio);
    if (!width || !this.#states.length) return;
    const levels = ZOOMS.map(([size, jobs]) => {
      const cell = Math.round(size * devicePixelRatio);
      const columns = Math.floor(width / cell);
      return { cell, jobs, columns, rows: Math.ceil(this.#states.length / jobs / columns) };
    });
    const fitting = levels.findLastIndex(({ cell, rows }) => cell * rows <= HEIGHT * devicePixelRatio);
    this.#levels = levels.slice(Math.max(0, fitting));
    const height = Math.min(this.#levels[0].cell * this.#levels[0].rows, HEIGHT * devicePixelRatio);
    Object.assign(this.#canvas, { width, height });
    Object.assign(this.#canvas.style, { width: cssPixels(width), height: cssPixels(height) });
    this.#scroller.style.height = cssPixels(height);
    this.#image = new ImageData(width, height);
    this.#readColors();
    this.zoomBy(0);
  }

  #readColors() {
    const style = getComputedStyle(this.#canvas);
    URGENCY.forEach((state, rank) => {
      this.#canvas.style.color = `var(--${state})`;
      const [red, green, blue] = (style.color.match(/\d+/g) ?? []).map(Number);
      const color = (blue << 16) | (green << 8) | red;
      const opacity = state === "done" ? CALM : 1;
      this.#colors[rank] = ((255 * opacity * FADED) << 24) | color;
      this.#colors[rank + URGENCY.length] = ((255 * opacity) << 24) | color;
    });
    this.#redraw();
  }

  #redraw() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const { width, height, data } = this.#image;
    const { cell, columns } = this.#level;
    const [states, ranks, colors] = [this.#states, this.#ranks, this.#colors];
    const size = cell - (cell < LARGE * devicePixelRatio ? 0 : Math.round(devicePixelRatio));
    const top = Math.round(this.#scroller.scrollTop * devicePixelRatio);
    const pixels = new Uint32Array(data.buffer);
    pixels.fill(0);
    for (let row = Math.floor(top / cell); row * cell - top < height; row += 1) {
      const [from, to] = [Math.max(0, row * cell - top), Math.min(height, row * cell - top + size)];
      for (let column = 0; column < columns && from < to; column += 1) {
        const job = this.#mostUrgent(row * columns + column);
        const color = job < 0 ? 0 : colors[ranks[states[job]]];
        const first = from * width + column * cell;
        // `fill` is slow where cells are small
        for (let pixel = first; pixel < first + size; pixel += 1) pixels[pixel] = color;
      }
      for (let y = from + 1; y < to; y += 1) pixels.copyWithin(y * width, from * width, (from + 1) * width);
    }
    // drawn by this processor alone
    this.#canvas.getContext("2d", { willReadFrequently: true })?.putImageData(this.#image, 0, 0);
    this.#mark();
  }

  /** Show the cursor, and write what the job is that is pointed at. */
  #mark() {
    const { cell, jobs, columns } = this.#level;
    const place = Math.floor(this.#cursor / jobs);
    const [left, top] = [(place % columns) * cell, Math.floor(place / columns) * cell].map(cssPixels);
    Object.assign(this.#marker.style, { left, top, width: cssPixels(cell), height: cssPixels(cell) });
    this.#marker.hidden = this.#cursor < 0;
    const job = this.#pointed < 0 ? this.#cursor : this.#pointed;
    const word = wordOf(STATE_OF_BYTE[this.#states[job]]);
    const others = jobs > 1 ? `, the most urgent of ${jobs} in the cell` : "";
    setText(this.#text, word ? `Job ${number(this.#start + job)}: ${word}${others}` : "");
  }

  /** Return the most urgent job of a cell, -1 for none. @param {number} place of the cell */
  #mostUrgent(place) {
    const [states, ranks, { jobs }] = [this.#states, this.#ranks, this.#level];
    let found = place * jobs;
    if (found >= states.length) return -1;
    const end = Math.min(found + jobs, states.length);
    for (let job = found + 1; job < end; job += 1) if (ranks[states[job]] > ranks[states[found]]) found = job;
    return found;
  }

  /** @param {MouseEvent} event */
  #jobAt({ clientX, clientY }) {
    const { cell, columns } = this.#level;
    const { left, top } = this.#sheet.getBoundingClientRect();
    const [column, row] = [clientX - left, clientY - top].map((each) => Math.floor((each * devicePixelRatio) / cell));
    return column < columns ? this.#mostUrgent(row * columns + column) : -1;
  }

  /** Open the job of the cursor. */
  #enter() {
    const state = STATE_OF_BYTE[this.#states[this.#cursor]];
    if (["done", "drafted", "failed"].includes(state)) this.#open(this.#start + this.#cursor);
  }

  #listen() {
    const scroller = this.#scroller;
    const point = (/** @type {number} */ job) => {
      this.#pointed = job;
      this.#redraw();
    };
    scroller.addEventListener("scroll", () => this.#redraw());
    scroller.addEventListener("keydown", (event) => this.#key(event));
    scroller.addEventListener("pointerdown", () => (this.#dragged = 0));
    scroller.addEventListener("pointerleave", () => point(-1));
    scroller.addEventListener("pointermove", (event) => {
      point(this.#jobAt(event));
      // a finger scrolls by itself
      if (!event.buttons || event.pointerType === "touch") return;
      this.#dragged += Math.abs(event.movementX) + Math.abs(event.movementY);
      scroller.scrollTop -= event.movementY;
    });
    scroller.addEventListener("click", (event) => {
      const job = this.#jobAt(event);
      if (this.#dragged >= DRAGGED || job < 0) return;
      this.#cursor = job;
      this.#redraw();
      this.#enter();
    });
    scroller.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      const y = event.clientY - scroller.getBoundingClientRect().top;
      this.zoomBy(-event.deltaY / 100, Math.max(0, this.#jobAt(event)), y);
    });
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { jobs, columns } = this.#level;
    const [left, up, end] = [-1, -columns, Infinity];
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: left, ArrowRight: -left, ArrowUp: up, ArrowDown: -up, Home: -end, End: end };
    /** @type {Record<string, number>} */
    const zooms = { "+": 1, "=": 1, "-": -1, 0: -end };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in zooms) this.zoomBy(zooms[event.key]);
    else if (event.key === "Enter") this.#enter();
    else if (event.key in moves) {
      const last = Math.floor((this.#states.length - 1) / jobs);
      const place = Math.floor(this.#cursor / jobs) + moves[event.key];
      this.#cursor = this.#mostUrgent(Math.max(0, Math.min(place, last)));
      this.#pointed = -1;
      this.#mark();
      this.#marker.scrollIntoView({ block: "nearest" });
    } else return;
    event.preventDefault();
  }
}

/** @param {number} value in pixels of the device */
const cssPixels = (value) => `${value / devicePixelRatio}px`;
