/** Requests to `/api`, which are sent again while the server, Redis or the bucket is unavailable. */

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 8_000;

/** @typedef {Record<string, string | number | boolean | readonly (string | number)[] | null | undefined>} Query */

/** An answer that is an error, or no answer: then `status` is 0. `message` has place, value and cure. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{code: string, message: string, param?: string | null} | undefined} error `code` is short and stable, `param`
   *   the field that is wrong
   * @param {string | null} [retryAfter] in seconds
   */
  constructor(status, error, retryAfter) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? "unknown";
    this.param = error?.param ?? null;
    this.retryAfter = Number(retryAfter) || 0;
  }

  /** Whether the same request may succeed later: the server, Redis or the bucket is unavailable. */
  get temporary() {
    return this.status === 0 || this.status === 429 || this.status >= 502;
  }
}

/** The token that each change sends, and what is called when the server wants a key. */
export const sender = { csrfToken: "", onSignedOut: () => {} };

/**
 * Return a path with a query; values that are null, undefined or "" are left out.
 *
 * @param {string} path
 * @param {Query} [query]
 */
export function url(path, query = {}) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") params.append(name, String(each));
    }
  }
  return params.size ? `${path}?${params}` : path;
}

/** The path of a batch's page. @param {string} name */
export const batchPage = (name) => `/batches/${encodeURIComponent(name)}`;

/** @param {string} name */
export const batchPath = (name) => `/api${batchPage(name)}`;

/**
 * Return the JSON of an answer.
 *
 * @param {string} path
 * @param {{query?: Query, signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export function get(path, { query, signal } = {}) {
  return send("GET", url(path, query), { signal });
}

/**
 * Return the JSON of an answer, see `readAgain`.
 *
 * @param {string} path
 * @param {{query?: Query, signal: AbortSignal}} options
 * @param {(error: ApiError) => void} [onProblem]
 * @returns {Promise<any>}
 */
export const getAgain = (path, options, onProblem) => readAgain(() => get(path, options), options.signal, onProblem);

/**
 * @param {string} path
 * @param {unknown} [body]
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export function post(path, body = {}, { signal } = {}) {
  return send("POST", path, { signal, body: toJson(body), headers: { "Content-Type": "application/json" } });
}

/** @param {string} path */
export function remove(path) {
  return send("DELETE", path, {});
}

/**
 * Send a form with a file. `fetch` reports no progress of what it sends, so this is an XMLHttpRequest.
 *
 * @param {string} path
 * @param {FormData} form
 * @param {{signal?: AbortSignal, onProgress?: (share: number) => void}} [options]
 * @returns {Promise<any>}
 */
export function upload(path, form, { signal, onProgress } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    if (sender.csrfToken) request.setRequestHeader("X-CSRF-Token", sender.csrfToken);
    request.upload.onprogress = (event) => onProgress?.(event.total ? event.loaded / event.total : 0);
    request.onload = () => {
      const body = parse(request.responseText);
      if (request.status < 400) return resolve(body);
      if (request.status === 401) sender.onSignedOut();
      return reject(new ApiError(request.status, body?.error, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(unreachable("POST"));
    request.onabort = () => reject(new DOMException("the upload was cancelled", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/**
 * @param {string} method
 * @param {string} path
 * @param {RequestInit} options
 */
async function send(method, path, options) {
  const headers = new Headers(options.headers);
  if (sender.csrfToken && method !== "GET") headers.set("X-CSRF-Token", sender.csrfToken);
  let answer;
  try {
    answer = await fetch(path, { ...options, method, headers });
  } catch (error) {
    throw options.signal?.aborted ? error : unreachable(method);
  }
  const body = parse(await answer.text());
  if (answer.ok) return body;
  if (answer.status === 401) sender.onSignedOut();
  throw new ApiError(answer.status, body?.error, answer.headers.get("Retry-After"));
}

/**
 * Return a value as JSON. What was read as a BigInt is the same number again.
 *
 * @param {unknown} value
 * @returns {string}
 */
export function toJson(value) {
  const { rawJSON } = /** @type {any} */ (JSON);
  return JSON.stringify(value, (_, each) => (typeof each === "bigint" ? rawJSON(String(each)) : each));
}

/**
 * Return a number as it was written: JavaScript rounds a whole one above 2^53, such as a seed.
 *
 * @param {string} _
 * @param {unknown} value
 * @param {{source?: string}} [context]
 */
function exact(_, value, context) {
  if (typeof value !== "number" || Math.abs(value) <= Number.MAX_SAFE_INTEGER) return value;
  return /^-?\d+$/.test(context?.source ?? "") ? BigInt(/** @type {string} */ (context?.source)) : value;
}

/** @param {string} text */
function parse(text) {
  try {
    return text ? JSON.parse(text, /** @type {any} */ (exact)) : null;
  } catch {
    return null;
  }
}

/** @param {string} method */
function unreachable(method) {
  const cure = method === "GET" ? "the page tries again by itself" : "try again when it does";
  return new ApiError(0, { code: "unreachable", message: `the server does not answer; ${cure}` });
}

/**
 * Return what `read` returns; after an error that is temporary, call it again, until `signal` is aborted.
 *
 * @template Value
 * @param {() => Promise<Value>} read
 * @param {AbortSignal} signal
 * @param {(error: ApiError) => void} [onProblem] called with each temporary error
 * @returns {Promise<Value>} never settles if `signal` is aborted first
 */
export async function readAgain(read, signal, onProblem = () => {}) {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      return await read();
    } catch (error) {
      if (signal.aborted) return new Promise(() => {});
      if (!(error instanceof ApiError) || !error.temporary) throw error;
      onProblem(error);
      await sleep(Math.max(pause, 1000 * error.retryAfter));
      if (signal.aborted) return new Promise(() => {});
    }
  }
}

/** @param {number} ms */
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Return a function that calls `act`, never twice at a time: a call meanwhile lets it run once more afterwards.
 *
 * @param {() => Promise<void>} act
 */
export function oneAtATime(act) {
  let [busy, due] = [false, false];
  return async () => {
    due = true;
    if (busy) return;
    busy = true;
    try {
      while (due) {
        due = false;
        await act();
      }
    } finally {
      busy = false;
    }
  };
}
