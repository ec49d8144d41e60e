// The page: what is searched for (in the address, so that it can be shared and gone back to), and what comes of it.

import * as answers from "./answer.js";
import * as api from "./api.js";
import { addFilter, loadLabels, openFilters, showFilters, showLabels, watchFilters } from "./filters.js";
import { keep, recall } from "./kept.js";
import { pollNow, showLive, startLive } from "./live.js";
import { watchForPictures } from "./picture.js";
import { activeFilters, emptyQuery, fromAddress, isAsked, toAddress, toRequest, withoutFilters } from "./query.js";
import { remember, suggestRecent } from "./suggest.js";
import { keepTimes, shortened } from "./text.js";
import * as watch from "./watch.js";
import { locale, switchLanguage, translate, words } from "./words.js";

const TOAST = 4000;
/** Most answers come within milliseconds: a flash of placeholders would only flicker. */
const PATIENCE = 150;

const byId = (id) => document.getElementById(id);
const topic = byId("topic");
const cards = byId("cards");

let query = emptyQuery();
/** The request under way, as its AbortController. */
let running = null;
/** All hits of the search so far. */
let hits = [];
/** A picture from a file does not fit into the address: it stays in memory, and the history knows its number. */
const files = [];

// ---- the search ---------------------------------------------------------------------------------------------------

/** Searches for `next`, as a new step of the history. */
function go(next) {
  query = next;
  const state = {};
  if (query.subject?.data) {
    if (!files.includes(query.subject)) files.push(query.subject);
    state.file = files.indexOf(query.subject);
  } else if (query.subject) {
    state.name = query.subject.name;
  }
  const address = toAddress(query);
  const same = address === location.pathname + location.search && state.file === history.state?.file;
  history[same ? "replaceState" : "pushState"](state, "", address);
  return run();
}

function readAddress(state) {
  query = fromAddress(location.search, (postId) => {
    if (postId) return { name: state?.name ?? words().likePost, thumbnail: null, postId };
    return files[state?.file] ?? null;
  });
}

/** What the form shows of the query, and the chips. */
function showQuery() {
  topic.value = query.topic;
  showFilters(query);
  showSubject();
  document.body.dataset.view = isAsked(query) ? "results" : "start";
  const name = query.subject?.name ?? query.topic;
  document.title = isAsked(query) ? `${shortened(name, 80)} · feedlens` : "feedlens";
  showWatchThis();
}

function showSubject() {
  const subject = query.subject;
  byId("subject").hidden = subject === null;
  if (subject === null) return;
  byId("subject-name").textContent = shortened(subject.name, 80);
  const picture = byId("subject-picture");
  picture.hidden = !subject.thumbnail;
  if (subject.thumbnail) {
    picture.src = subject.thumbnail;
  } else if (subject.postId) {
    api.thumbnail(subject.postId).then((thumbnail) => {
      subject.thumbnail = thumbnail.startsWith("data:image/") ? thumbnail : null;
      if (subject.thumbnail && query.subject === subject) showSubject();
    }).catch(() => {});
  }
}

async function run() {
  running?.abort();
  const own = new AbortController();
  running = own;
  hits = [];
  showQuery();
  if (!isAsked(query)) {
    answers.setBusy(false);
    return answers.showNothing();
  }
  answers.setBusy(true);
  const patience = setTimeout(answers.showLoading, PATIENCE);
  try {
    const answer = await api.search(toRequest(query), own.signal);
    if (running !== own) return;
    hits = answer.hits;
    if (!query.subject) remember(query.topic);
    answers.showAnswer(query, answer, hits);
  } catch (error) {
    if (error.name !== "AbortError" && running === own) answers.showFailure(error);
  } finally {
    clearTimeout(patience);
    if (running === own) answers.setBusy(false);
  }
}

async function more() {
  const own = running;
  const before = hits.length;
  byId("more").disabled = true;
  try {
    const answer = await api.search(toRequest(query, before), own.signal);
    if (running !== own) return;
    hits = [...hits, ...answer.hits];
    answers.showAnswer(query, answer, hits);
    answers.focusCard(before);
  } catch (error) {
    if (error.name !== "AbortError" && running === own) tell(error.message || words().offlineTitle);
  } finally {
    byId("more").disabled = false;
  }
}

/** A filter or an option was changed: searched anew at once, if anything is searched for. */
function refine(next) {
  if (isAsked(next)) return go(next);
  query = next;
  showQuery();
}

function forTopic(text, target = query.target) {
  const asked = text.trim();
  if (asked === "") return reset();
  return go({ ...query, topic: asked, subject: null, target, nearest: false, unfolded: false });
}

function similar(post, thumbnail) {
  go({ ...query, topic: "", subject: subjectOf(post, thumbnail), nearest: false, unfolded: false });
  scrollTo({ top: 0 });
  topic.focus({ preventScroll: true });
}

/** The posts that were folded into this one. */
function unfold(hit, thumbnail) {
  go({ ...query, topic: "", subject: subjectOf(hit, thumbnail), unfolded: true });
  scrollTo({ top: 0 });
}

function subjectOf(post, thumbnail) {
  const caption = shortened(post.caption, 80).trim();
  return { name: caption || words().likePost, thumbnail, postId: post.post_id };
}

function reset() {
  running?.abort();
  query = emptyQuery();
  if (location.search || history.state?.file !== undefined) history.pushState({}, "", "/");
  return run();
}

function tell(message) {
  const toast = byId("toast");
  toast.textContent = message;
  toast.hidden = false;
  clearTimeout(Number(toast.dataset.timer));
  toast.dataset.timer = setTimeout(() => { toast.hidden = true; }, TOAST);
}

function showWatchThis() {
  const button = byId("watch-this");
  button.hidden = !watch.canWatch() || query.topic === "" || query.subject !== null;
  const known = watch.standing(query.topic, query.target) !== null;
  button.ariaPressed = String(known);
  byId("watch-this-text").textContent = known ? words().watching : words().watchThis;
}

// ---- events -------------------------------------------------------------------------------------------------------

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  // A picture gives way to words typed after it.
  if (topic.value.trim() || !query.subject) forTopic(topic.value);
  else run();
});

// Emptied by its own cross, and not by hand on the way to another topic.
topic.addEventListener("search", () => {
  if (topic.value === "" && query.topic !== "") reset();
});

byId("subject-remove").addEventListener("click", () => {
  reset();
  topic.focus();
});

for (const sample of document.querySelectorAll(".samples button")) {
  sample.addEventListener("click", () => forTopic(sample.textContent));
}

byId("watch-this").addEventListener("click", () => watch.toggle(query.topic, query.target));

byId("theme").addEventListener("click", () => {
  const themes = ["system", "light", "dark"];
  const next = themes[(themes.indexOf(recall("theme", "system")) + 1) % themes.length];
  keep("theme", next === "system" ? null : next);
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  showTheme();
});

function showTheme() {
  const name = words().theme[recall("theme", "system")] ?? words().theme.system;
  byId("theme").ariaLabel = name;
  byId("theme").title = name;
}

byId("language").addEventListener("click", () => {
  switchLanguage();
  speak();
});

addEventListener("popstate", (event) => {
  readAddress(event.state);
  openFilters(activeFilters(query).length > 0);
  run();
});

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input:not([type=radio]):not([type=file]), select");
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
  toggle.textContent = words().otherLanguage;
  toggle.lang = words().otherLanguageTag;
  showTheme();
  showLabels();
  showQuery();
  showLive();
  watch.showWatch();
  answers.showAgain();
}

// ---- the start ----------------------------------------------------------------------------------------------------

function serverChanged(code) {
  if (code === null) {
    // Whatever failed because the server was away is asked again.
    loadLabels(answers.drawAgain);
    watch.refresh();
    if (answers.shownFailure() === "offline") run();
  } else if (code === "unauthorized" && !isAsked(query)) {
    answers.showFailure(new api.ApiError(code, ""));
  }
}

answers.prepareAnswers({
  similar,
  unfold,
  filter: (name, value) => {
    openFilters(true);
    addFilter(name, value);
  },
  retry: run,
  more,
  nearest: () => go({ ...query, nearest: true }),
  loosen: () => go(withoutFilters(query)),
  keyGiven: () => {
    pollNow();
    loadLabels(answers.drawAgain);
    watch.refresh();
    run();
  },
});
watchFilters(() => ({ ...query, topic: query.subject ? "" : topic.value.trim() }), refine);
suggestRecent(forTopic);
watchForPictures(
  (name, data) => go({ ...query, topic: "", subject: { name, thumbnail: data, data }, nearest: false, unfolded: false }),
  (message) => tell(message),
);
readAddress(history.state);
openFilters(activeFilters(query).length > 0);
speak();
keepTimes();
run();
startLive(serverChanged);
loadLabels(answers.drawAgain);
watch.startWatch({ search: forTopic, similar, changed: showWatchThis, tell });
