// Standing topics and their live matches.

import * as api from "./api.js";
import { THUMBNAIL } from "./cards.js";
import { keepStream } from "./stream.js";
import { fillTime, shortened } from "./text.js";
import { translate, words } from "./words.js";

const SHOWN_MATCHES = 30;
const KEPT_THUMBNAILS = 200;
/** The voice of a screen reader is a narrow channel: it gets a count at most so often. */
const ANNOUNCE_EVERY = 10_000;
const INTERVAL = 60_000;

const byId = (id) => document.getElementById(id);
const thumbnails = new Map();
/** Matches since the page was opened, by topic id. */
const counts = new Map();
let topics = [];
/** "waiting", "ready", or the error for which there are none. */
let state = "waiting";
let stream = { state: "waiting", until: 0 };
let act = {};
let connection = null;
let unspoken = 0;
let speaking = 0;
let timer = 0;

/** `actions` has `search(topic, target)`, `similar({post_id, caption}, thumbnail)`, `changed()`, `tell(message)`. */
export function startWatch(actions) {
  act = actions;
  setInterval(showStream, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && state === "ready") refresh(); });
  refresh();
}

/** Asks anew, as after a key was given or the server came back. */
export async function refresh() {
  clearTimeout(timer);
  try {
    topics = await api.topics();
    state = "ready";
    for (const id of counts.keys()) if (!topics.some((topic) => topic.topic_id === id)) counts.delete(id);
  } catch (error) {
    state = error;
  }
  if (state === "ready" && !connection) {
    connection = keepStream(api.matches, { event: receive, state: turn });
  } else if (state === "ready" && stream.state === "refused") {
    connection.restart();
  }
  if (state === "ready" || !absent()) timer = setTimeout(() => { if (!document.hidden) refresh(); }, INTERVAL);
  showWatch();
  act.changed();
}

/** Whether this server knows standing topics at all. */
function absent() {
  return state instanceof Error && ["not_found", "method_not_allowed"].includes(state.code);
}

export function canWatch() {
  return state === "ready";
}

/** The standing topic that a search is, if it is one. */
export function standing(topic, target) {
  return topics.find((other) => other.topic === topic && (other.target ?? "image") === target) ?? null;
}

export async function toggle(topic, target) {
  const known = standing(topic, target);
  if (known) return remove(known);
  try {
    await api.addTopic({ topic, target });
    act.tell(words().nowWatching(shortened(topic, 60)));
  } catch (error) {
    act.tell(error.message || words().offlineTitle);
  }
  return refresh();
}

async function remove(topic) {
  try {
    await api.removeTopic(topic.topic_id);
    act.tell(words().notWatching(shortened(topic.topic, 60)));
  } catch (error) {
    if (error.code !== "not_found") act.tell(error.message || words().offlineTitle);
  }
  return refresh();
}

function turn(name, detail) {
  stream = { state: name, until: name === "down" ? performance.now() + detail : 0 };
  // What was registered while the stream was down is not known here.
  if (name === "live" && state === "ready") refresh();
  showStream();
}

function showStream() {
  const shown = state === "ready" ? stream.state : "off";
  const element = byId("stream");
  element.hidden = shown === "off";
  element.dataset.state = shown;
  const seconds = Math.max(0, Math.ceil((stream.until - performance.now()) / 1000));
  const text = words().stream[shown]?.(seconds) ?? "";
  if (byId("stream-text").textContent !== text) byId("stream-text").textContent = text;
}

/** Anew, in the present language. */
export function showWatch() {
  showStream();
  const table = words();
  const note = byId("topics-note");
  if (state === "ready") note.textContent = topics.length > 0 ? "" : table.noTopics;
  else if (state === "waiting") note.textContent = table.loading;
  else if (absent()) note.textContent = table.watchAbsent;
  else note.textContent = state.code === "unauthorized" ? table.watchLocked : state.message || table.offlineTitle;
  byId("topics").replaceChildren(...(state === "ready" ? topics.map(row) : []));
  byId("matches-part").hidden = state !== "ready" || (topics.length === 0 && byId("matches").childElementCount === 0);
}

function row(topic) {
  const element = byId("topic-row").content.firstElementChild.cloneNode(true);
  const name = shortened(topic.topic, 120);
  const open = element.querySelector(".topic-name");
  open.firstElementChild.textContent = name;
  open.title = words().searchTopic(name);
  open.addEventListener("click", () => act.search(topic.topic, topic.target ?? "image"));
  element.dataset.topic = topic.topic_id;
  showCount(element, topic.topic_id);
  const drop = element.querySelector(".topic-remove");
  drop.ariaLabel = words().unwatch(name);
  drop.title = words().unwatch(name);
  drop.addEventListener("click", () => remove(topic));
  return element;
}

function showCount(element, topicId) {
  const count = element.querySelector(".topic-count");
  count.hidden = !counts.has(topicId);
  count.textContent = counts.get(topicId) ?? "";
  count.title = words().matchesSince(counts.get(topicId) ?? 0);
}

function receive(name, data) {
  if (name === "gap") show(gapItem());
  if (name !== "match") return;
  let match;
  try {
    match = JSON.parse(data);
  } catch {
    return;
  }
  counts.set(match.topic_id, (counts.get(match.topic_id) ?? 0) + 1);
  const topic = [...byId("topics").children].find((element) => element.dataset.topic === match.topic_id);
  if (topic) showCount(topic, match.topic_id);
  show(matchItem(match));
  announce();
}

function show(item) {
  const list = byId("matches");
  list.prepend(item);
  while (list.childElementCount > SHOWN_MATCHES) list.lastElementChild.remove();
  byId("matches-note").hidden = true;
  byId("matches-part").hidden = false;
}

function gapItem() {
  const element = document.createElement("li");
  element.className = "match-gap";
  element.textContent = words().matchesGap;
  return element;
}

function matchItem(match) {
  const element = byId("match").content.firstElementChild.cloneNode(true);
  translate(element);
  const find = (selector) => element.querySelector(selector);
  const caption = shortened(match.caption, 200);
  find(".match-caption bdi").textContent = caption;
  find(".match-topic").textContent = shortened(match.topic, 60);
  find(".match-score").textContent = Number(match.score).toFixed(3);
  fillTime(find("time"), match.matched_at);
  const open = find(".match-open");
  let thumbnail = null;
  open.ariaLabel = words().openMatch(shortened(match.topic, 60), shortened(match.caption, 80));
  open.addEventListener("click", () => act.similar(match, thumbnail));
  // A stream that goes on after a while brings many at once, of which most are pushed out of the list at once.
  setTimeout(() => {
    if (!element.isConnected) return;
    picture(match.post_id).then((uri) => {
      if (!THUMBNAIL.test(uri)) return;
      thumbnail = uri;
      find("img").src = uri;
      find("img").hidden = false;
    }).catch(() => {});
  });
  return element;
}

function picture(postId) {
  if (!thumbnails.has(postId)) {
    thumbnails.set(postId, api.thumbnail(postId));
    if (thumbnails.size > KEPT_THUMBNAILS) thumbnails.delete(thumbnails.keys().next().value);
  }
  return thumbnails.get(postId);
}

function announce() {
  unspoken += 1;
  if (speaking) return;
  speaking = setTimeout(() => {
    byId("announce").textContent = words().newMatches(unspoken);
    unspoken = 0;
    speaking = 0;
  }, ANNOUNCE_EVERY);
}
