/**
 * The answers of `/api` that the dashboard reads; docs/reference/http.md describes them.
 *
 * @typedef {"pending" | "leased" | "done" | "failed" | "cancelled" | "drafted"} JobState
 * @typedef {"opening" | "open" | "complete" | "cancelled" | "deleting" | "recovering" | "paused" | "drafted"} BatchState
 * @typedef {"picked" | "rejected" | null} Pick
 *
 * @typedef {object} Batch
 * @property {string} batch
 * @property {string} model
 * @property {BatchState} state
 * @property {string} paused describes the pause; empty if the batch is not paused
 * @property {"" | "user" | "submission" | "canary" | "failure_budget"} paused_by
 * @property {number} priority
 * @property {number} total
 * @property {number} pending
 * @property {number} leased
 * @property {number} done
 * @property {number} failed
 * @property {number} cancelled
 * @property {number} drafted
 * @property {Record<string, number>} errors failed jobs by code
 * @property {number | null} images_per_s
 * @property {number | null} eta_s
 * @property {string} owner
 * @property {string} [created]
 * @property {string[]} [warnings] why its jobs wait; only of a single batch
 *
 * @typedef {object} Job the line of a job's result; a done job has the fields of its receipt as well
 * @property {string} job
 * @property {number} index
 * @property {JobState} state
 * @property {number} attempts
 * @property {string | null} worker
 * @property {{code: string, message: string} | null} error
 * @property {Record<string, any>} request the row
 * @property {Record<string, any>} [columns] of the row, unread
 * @property {{evaluations: number, of: number}} [draft] after how many evaluations of the model it stopped
 * @property {string | null} image
 * @property {string | null} thumbnail
 * @property {Pick} [pick]
 * @property {number | null} [rating]
 * @property {string | null} [parameters] text in the form of AUTOMATIC1111; only of a single job
 * @property {string | null} [intermediates] path of the strip of intermediate images; only of a single job
 * @property {string} [sha256]
 * @property {string} [model]
 * @property {number} [seed]
 *
 * @typedef {object} PickCounts
 * @property {number} picked
 * @property {number} rejected
 * @property {number} rated
 * @property {number} picked_drafts
 * @property {number} rejected_drafts
 *
 * @typedef {object} Failure
 * @property {string} code
 * @property {number} count
 * @property {number[]} indices
 * @property {string} message
 *
 * @typedef {object} Worker
 * @property {string} worker
 * @property {string} model
 * @property {string} device
 * @property {string} device_name
 * @property {string} dtype
 * @property {number} slots
 * @property {number} images
 * @property {number | null} images_per_s
 * @property {number | null} busy_share
 * @property {boolean} draining
 * @property {string} since
 * @property {string} seen
 *
 * @typedef {object} Slot an image on a worker's device
 * @property {string} job
 * @property {number} step
 * @property {number} steps
 * @property {string | null} preview a data URL
 *
 * @typedef {object} Model
 * @property {string} model
 * @property {number} workers
 * @property {number} pending
 * @property {number} images_per_s
 *
 * @typedef {object} Session
 * @property {string} name
 * @property {string[]} scopes
 * @property {string} csrf_token
 */

export {};
