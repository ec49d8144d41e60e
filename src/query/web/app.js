// The page: what is searched for (in the address, so that it can be shared and gone back to), and what comes of it.

import * as api from "./api.js";
import { card, placeholder } from "./cards.js";
import { showLive, startLive } from "./live.js";
import { watchForPictures } from "./picture.js";
import { locale, switchLanguage, translate, words } from "./words.js";

const TOP_K = 5;
const FILTERS = ["author", "lang", "tag", "since", "until"];

const byId = (id) => document.getElementById(id);
const form = byId("search");
const topic = byId("topic");
const cards = byId("cards");
const results = byId("results");
const filters = byId("filters");

/** The subject beside the topic: `{name, thumbnail, postId}` of a stored post, or `{name, thumbnail, data}` of a file. */
let subject = null;
let running = null;
/** What the result area shows, to show it anew in the other language. */
let shown = () => {};
/** A picture from a file does not fit into the address: it stays in memory, and the history knows its number. */
const files = [];

// ---- the search as a form, an address, a request ------------------------------------------------------------------

function fields() {
  const values = { target: form.elements.target.value };
  for (const name of FILTERS) values[name] = form.elements[name].value.trim();
  return values;
}

function address() {
  const parameters = new URLSearchParams();
  if (subject?.postId) parameters.set("post", subject.postId);
  else if (!subject && topic.value.trim()) parameters.set("q", topic.value.trim());
  for (const [name, value] of Object.entries(fields())) {
    if (value && !(name === "target" && value === "image")) parameters.set(name, value);
  }
  const query = parameters.toString();
  return query ? `/?${query}` : "/";
}

function readAddress(state) {
  const parameters = new URLSearchParams(location.search);
  const target = parameters.get("target");
  form.elements.target.value = ["image", "caption", "both"].includes(target) ? target : "image";
  for (const name of FILTERS) form.elements[name].value = parameters.get(name) ?? "";
  topic.value = parameters.get("q") ?? "";
  const postId = parameters.get("post");
  if (postId) setSubject({ name: state?.name ?? words().likePost, thumbnail: null, postId });
  else setSubject(files[state?.file] ?? null);
  showFilters(activeFilters() > 0);
}

function request() {
  const values = fields();
  const filter = {};
  if (values.author) filter.author = values.author;
  if (values.lang) filter.lang = values.lang;
  if (values.tag) filter.tags_any = [values.tag];
  // The form has the viewer's wall clock, the server takes moments.
  for (const name of ["since", "until"]) {
    const time = new Date(values[name] || NaN);
    if (!Number.isNaN(time.getTime())) filter[name] = time.toISOString();
  }
  const asked = { top_k: TOP_K, target: values.target, filter };
  if (subject?.postId) asked.image = { post_id: subject.postId };
  else if (subject) asked.image = { base64: subject.data };
  else asked.topic = topic.value.trim();
  return asked;
}

function isAsked() {
  return subject !== null || topic.value.trim() !== "";
}

function activeFilters() {
  return FILTERS.filter((name) => form.elements[name].value.trim() !== "").length;
}

function showFilters(open) {
  filters.hidden = !open;
  byId("filters-toggle").ariaExpanded = String(open);
  countFilters();
}

function countFilters() {
  const count = activeFilters();
  byId("filters-count").hidden = count === 0;
  byId("filters-count").textContent = count;
}

function setSubject(next) {
  subject = next;
  const chip = byId("subject");
  chip.hidden = next === null;
  if (next === null) return;
  topic.value = "";
  byId("subject-name").textContent = next.name;
  const picture = byId("subject-picture");
  picture.hidden = !next.thumbnail;
  if (next.thumbnail) {
    picture.src = next.thumbnail;
  } else if (next.postId) {
    api.thumbnail(next.postId).then((thumbnail) => {
      if (subject !== next || !thumbnail.startsWith("data:image/")) return;
      next.thumbnail = thumbnail;
      picture.src = thumbnail;
      picture.hidden = false;
    }).catch(() => {});
  }
}

// ---- searching ----------------------------------------------------------------------------------------------------

/** Searches for what the form says, as a new step of the history. */
function submit() {
  if (!isAsked()) return reset();
  const state = {};
  if (subject?.data) {
    if (!files.includes(subject)) files.push(subject);
    state.file = files.indexOf(subject);
  } else if (subject) {
    state.name = subject.name;
  }
  const next = address();
  if (next === location.pathname + location.search && state.file === history.state?.file) {
    history.replaceState(state, "", next);
  } else {
    history.pushState(state, "", next);
  }
  return run();
}

/** Searches again for what one of the form's choices has changed. */
function refine() {
  countFilters();
  if (isAsked()) submit();
}

async function run() {
  running?.abort();
  const own = new AbortController();
  running = own;
  if (!isAsked()) return showNothing();
  document.title = `${subject?.name ?? topic.value.trim()} · feedlens`;
  results.setAttribute("aria-busy", "true");
  // Most answers come within milliseconds: a flash of placeholders would only flicker.
  const patience = setTimeout(showLoading, 150);
  try {
    const response = await api.search(request(), own.signal);
    if (running === own) show(() => showAnswer(response));
  } catch (error) {
    if (error.name !== "AbortError" && running === own) show(() => showFailure(error));
  } finally {
    clearTimeout(patience);
    if (running === own) results.setAttribute("aria-busy", "false");
  }
}

function show(view) {
  shown = view;
  view();
}

function clearResults() {
  cards.replaceChildren();
  byId("summary").textContent = "";
  byId("notice").hidden = true;
  byId("zone").hidden = true;
}

function showNothing() {
  document.title = "feedlens";
  results.setAttribute("aria-busy", "false");
  show(() => {
    clearResults();
    byId("zone").hidden = false;
  });
}

function showLoading() {
  clearResults();
  byId("summary").textContent = words().loading;
  cards.replaceChildren(...Array.from({ length: TOP_K }, placeholder));
}

function showAnswer(response) {
  clearResults();
  if (response.hits.length === 0) {
    notice(words().emptyTitle, activeFilters() > 0 ? words().emptyFiltered : words().emptyFeed);
    return;
  }
  const number = new Intl.NumberFormat(locale(), { maximumFractionDigits: 1 });
  byId("summary").textContent =
    words().summary(response.hits.length, response.candidates, number.format(response.took_ms));
  cards.replaceChildren(...response.hits.map((hit) => card(hit, { similar, filter, thumbnail: api.thumbnail })));
}

function showFailure(error) {
  clearResults();
  const table = words();
  if (error.code === "unauthorized") {
    notice(table.keyTitle, table.keyText, { key: true });
    byId("key-value").focus();
  } else if (error.code === "offline" || !(error instanceof api.ApiError)) {
    notice(table.offlineTitle, table.offlineText, { retry: true });
  } else {
    notice(table.failedTitle, error.message, { retry: ["overloaded", "unavailable", "internal"].includes(error.code) });
  }
}

function notice(title, text, { retry = false, key = false } = {}) {
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  byId("retry").hidden = !retry;
  byId("key").hidden = !key;
  byId("notice").hidden = false;
}

function similar(hit, thumbnail) {
  const caption = (hit.caption ?? "").trim();
  setSubject({ name: caption.slice(0, 80) || words().likePost, thumbnail, postId: hit.post_id });
  submit();
  scrollTo({ top: 0 });
  topic.focus({ preventScroll: true });
}

function filter(name, value) {
  form.elements[name].value = value;
  showFilters(true);
  submit();
}

function reset() {
  setSubject(null);
  topic.value = "";
  if (location.search || history.state?.file !== undefined) history.pushState({}, "", address());
  running?.abort();
  showNothing();
}

// ---- events -------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  // A picture gives way to words typed after it.
  if (topic.value.trim()) setSubject(null);
  submit();
});

form.addEventListener("change", (event) => {
  if (event.target.name === "target" || FILTERS.includes(event.target.name)) refine();
});

topic.addEventListener("input", () => {
  if (topic.value.trim() && subject) {
    const typed = topic.value;
    setSubject(null);
    topic.value = typed;
  }
});

byId("subject-remove").addEventListener("click", () => {
  reset();
  topic.focus();
});

byId("filters-toggle").addEventListener("click", () => showFilters(filters.hidden));

byId("filters-clear").addEventListener("click", () => {
  for (const name of FILTERS) form.elements[name].value = "";
  refine();
});

for (const sample of document.querySelectorAll(".samples button")) {
  sample.addEventListener("click", () => {
    setSubject(null);
    topic.value = sample.textContent;
    submit();
  });
}

byId("retry").addEventListener("click", run);

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(byId("key-value").value.trim());
  byId("key-value").value = "";
  run();
});

byId("language").addEventListener("click", () => {
  switchLanguage();
  speak();
});

addEventListener("popstate", (event) => {
  readAddress(event.state);
  run();
});

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input:not([type=radio]):not([type=file])");
  if (event.key === "/" && !inField) {
    event.preventDefault();
    topic.focus();
    topic.select();
  } else if (event.key === "Escape" && (event.target === topic || !inField)) {
    reset();
    topic.focus();
  } else if (event.key.startsWith("Arrow")) {
    moveAcrossCards(event);
  }
});

/** Left and right (and up and down) step through the cards; down from the search box enters them. */
function moveAcrossCards(event) {
  const pictures = [...cards.querySelectorAll(".picture:not(:disabled)")];
  const index = pictures.indexOf(document.activeElement);
  let next;
  if (index < 0) {
    if (event.target !== topic || event.key !== "ArrowDown") return;
    next = pictures[0];
  } else if (index === 0 && event.key === "ArrowUp") {
    next = topic;
  } else {
    const step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
    next = pictures[Math.min(pictures.length - 1, Math.max(0, index + step))];
  }
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function speak() {
  document.documentElement.lang = locale();
  translate(document);
  const toggle = byId("language");
  const other = locale() === "en" ? { text: "中文", lang: "zh" } : { text: "English", lang: "en" };
  toggle.textContent = other.text;
  toggle.lang = other.lang;
  showLive();
  shown();
}

watchForPictures(
  (name, data) => {
    setSubject({ name: name || words().pasted, thumbnail: data, data });
    submit();
  },
  (message) => {
    running?.abort();
    show(() => {
      clearResults();
      notice(words().failedTitle, message);
    });
  },
);

speak();
readAddress(history.state);
startLive();
run();
