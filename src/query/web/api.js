// Calls to the server. A failure is an ApiError with the server's code and message, or "offline" without either.

const STORED = "feedlens.key";

let key = stored();

function stored() {
  // Storage throws where it is switched off.
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return "";
  }
}

export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    // The key then lasts as long as the page.
  }
}

async function call(path, options = {}) {
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
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new ApiError(body?.error?.code ?? "offline", body?.error?.message ?? "");
}

export function search(request, signal) {
  const headers = { "Content-Type": "application/json" };
  return call("/v1/search", { method: "POST", headers, body: JSON.stringify(request), signal });
}

export function stats() {
  return call("/v1/stats");
}

export async function thumbnail(postId) {
  return (await call(`/v1/thumbnail?post_id=${encodeURIComponent(postId)}`)).thumbnail;
}
