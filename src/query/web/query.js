// A search as plain data, and its two other forms: an address, which can be shared, and the request to the server.

export const TOP_K = 5;
const TARGETS = ["image", "caption", "both"];

/**
 * `subject` stands beside the topic: `{name, thumbnail, postId}` of a stored post, or `{name, thumbnail, data}` of a file,
 * which no address can hold. `since` and `until` are ISO moments, so that a link means the same in every time zone.
 */
export function emptyQuery() {
  return {
    topic: "", subject: null, target: "image", author: "", lang: "", tags: [], labels: [], since: "", until: "",
    nearest: false, unfolded: false,
  };
}

export function isAsked(query) {
  return query.subject !== null || query.topic !== "";
}

/** The filters in force, one for each chip: `{name, value}`. */
export function activeFilters(query) {
  const single = ["author", "lang", "since", "until"].filter((name) => query[name] !== "");
  return [
    ...single.map((name) => ({ name, value: query[name] })),
    ...query.tags.map((value) => ({ name: "tags", value })),
    ...query.labels.map((value) => ({ name: "labels", value })),
  ];
}

export function withoutFilter(query, { name, value }) {
  const left = Array.isArray(query[name]) ? query[name].filter((other) => other !== value) : "";
  return { ...query, [name]: left };
}

export function withoutFilters(query) {
  const { topic, subject, target, nearest, unfolded } = query;
  return { ...emptyQuery(), topic, subject, target, nearest, unfolded };
}

export function toAddress(query) {
  const parameters = new URLSearchParams();
  if (query.subject?.postId) parameters.set("post", query.subject.postId);
  else if (!query.subject && query.topic) parameters.set("q", query.topic);
  if (query.target !== "image") parameters.set("target", query.target);
  for (const name of ["author", "lang", "since", "until"]) if (query[name]) parameters.set(name, query[name]);
  for (const tag of query.tags) parameters.append("tag", tag);
  for (const label of query.labels) parameters.append("label", label);
  if (query.nearest) parameters.set("min_score", "none");
  if (query.unfolded) parameters.set("fold", "false");
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

/** Reads an address's search; `subjectOf(postId)` gives the subject for the post that it names, or for none. */
export function fromAddress(search, subjectOf) {
  const parameters = new URLSearchParams(search);
  const text = (name) => (parameters.get(name) ?? "").trim();
  const subject = subjectOf(parameters.get("post"));
  return {
    topic: subject ? "" : text("q"),
    subject,
    target: TARGETS.includes(text("target")) ? text("target") : "image",
    author: text("author"),
    lang: text("lang"),
    tags: [...new Set(parameters.getAll("tag").filter(Boolean))],
    labels: [...new Set(parameters.getAll("label").filter(Boolean))],
    since: moment(text("since")),
    until: moment(text("until")),
    nearest: text("min_score") === "none",
    unfolded: text("fold") === "false",
  };
}

/** The request of `POST /v1/search`. What is not asked for is left out, so that older servers answer too. */
export function toRequest(query, offset = 0) {
  const filter = {};
  for (const name of ["author", "lang", "since", "until"]) if (query[name]) filter[name] = query[name];
  if (query.tags.length > 0) filter.tags_any = query.tags;
  if (query.labels.length > 0) filter.labels_any = query.labels;
  const request = { top_k: TOP_K, target: query.target, filter };
  if (offset > 0) request.offset = offset;
  if (query.nearest) request.min_score = "none";
  if (query.unfolded) request.fold = false;
  if (query.subject?.postId) request.image = { post_id: query.subject.postId };
  else if (query.subject) request.image = { base64: query.subject.data };
  else request.topic = query.topic;
  return request;
}

/** An ISO moment of anything that Date reads, or "". */
export function moment(text) {
  const time = new Date(text || NaN);
  return Number.isNaN(time.getTime()) ? "" : time.toISOString();
}

/** The wall clock here of a moment, as a `datetime-local` field takes it. */
export function wallClock(iso) {
  if (!iso) return "";
  const time = new Date(iso);
  const local = new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString();
  return local.slice(0, time.getUTCSeconds() === 0 ? 16 : 19);
}
