// Calls to the server. A failure is an ApiError with the server's code and message, or "offline" without either.

import { keep, recall } from "./kept.js";

let key = recall("key", "", "sessionStorage");

export class ApiError extends Error {
  /** `retryAfter`: seconds, or null where the server named none. */
  constructor(code, message, retryAfter = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Kept until the tab is closed. */
export function useKey(value) {
  key = value;
  keep("key", value, "sessionStorage");
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers["X-Api-Key"] = key;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A key with a character that no header takes fails here too, and is none that the server knows.
    throw error instanceof TypeError && /header/i.test(error.message)
      ? new ApiError("unauthorized", error.message)
      : new ApiError("offline", "");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const delay = Number.parseInt(response.headers.get("Retry-After"), 10);
  throw new ApiError(body?.error?.code ?? "offline", body?.error?.message ?? "", Number.isNaN(delay) ? null : delay);
}

async function call(path, options) {
  const response = await send(path, options);
  if (response.status === 204) return null;
  const body = await response.json().catch(() => null);
  if (body === null) throw new ApiError("offline", "");
  return body;
}

function callWith(method, path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method, headers, body: JSON.stringify(body), signal });
}

export function search(request, signal) {
  return callWith("POST", "/v1/search", request, signal);
}

export function stats() {
  return call("/v1/stats");
}

/** A small copy of a post's picture, as a data URI. Pictures come in handfuls: a server at its limit is asked again. */
export async function thumbnail(postId) {
  for (let attempts = 3; ; attempts -= 1) {
    try {
      return (await call(`/v1/thumbnail?post_id=${encodeURIComponent(postId)}`)).thumbnail;
    } catch (error) {
      if (attempts === 1 || !error.retryAfter) throw error;
      await new Promise((resume) => setTimeout(resume, 1000 * error.retryAfter));
    }
  }
}

/** The label sets of the server: `[{name, moderation, labels}]`. */
export async function labelSets() {
  return (await call("/v1/labels")).sets;
}

/** The standing topics: `[{topic_id, topic, target, min_score, created_at}]`. */
export async function topics() {
  return (await call("/v1/topics")).topics;
}

export function addTopic(record) {
  return callWith("POST", "/v1/topics", record);
}

export function removeTopic(topicId) {
  return call(`/v1/topics/${encodeURIComponent(topicId)}`, { method: "DELETE" });
}

/** The open stream of matches: server-sent events. By fetch, for an EventSource sends no key. */
export async function matches(signal, lastId) {
  const headers = { Accept: "text/event-stream" };
  if (lastId) headers["Last-Event-ID"] = lastId;
  return (await send("/v1/matches", { headers, signal })).body;
}
