// The live strip: polls once a second while someone looks.

import { stats } from "./api.js";
import { locale, words } from "./words.js";

const INTERVAL = 1000;
/** After a failure: a server that restarts is not helped by a question a second from each open page. */
const INTERVAL_AFTER_FAILURE = 3000;
/** Seconds that the little curve of the throughput shows. */
const CURVE = 60;

const byId = (id) => document.getElementById(id);
const strip = byId("live");
const rates = [];
let timer = 0;
let latest = null;
let changed = () => {};

/** `stateChanged(code)` is called when the server stops answering (an error's code) and when it answers again (null). */
export function startLive(stateChanged) {
  changed = stateChanged;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) poll();
  });
  poll();
}

/** Asks at once, as after a key was given. */
export function pollNow() {
  clearTimeout(timer);
  poll();
}

/** Anew, in the present language. */
export function showLive() {
  if (!latest) return;
  const exact = new Intl.NumberFormat(locale(), { maximumFractionDigits: 0 });
  const compact = new Intl.NumberFormat(locale(), { notation: "compact", maximumFractionDigits: 1 });
  const set = (name, value, format = value < 10_000 ? exact : compact) => {
    const element = byId(`live-${name}`);
    element.closest("div").hidden = value === null;
    element.textContent = value === null ? "–" : format.format(value);
    element.title = value === null ? "" : exact.format(value);
  };
  const fine = (value) => new Intl.NumberFormat(locale(), { maximumFractionDigits: value < 10 ? 1 : 0 });
  set("rate", latest.posts_per_second, fine(latest.posts_per_second));
  set("dead", latest.dead_lettered);
  set("lag", latest.lag);
  set("searches", latest.searches);
  set("search-ms", latest.search_ms, fine(latest.search_ms ?? 0));
  // A store that does not answer has a size all the same, and nobody knows it.
  set("posts", latest.posts ?? 0);
  if (latest.posts === null) byId("live-posts").textContent = "?";
  byId("live-model").textContent = latest.model;
  byId("live-model").title = latest.model;
  byId("live-dead").closest("div").classList.toggle("some", latest.dead_lettered > 0);
  const highest = Math.max(1, ...rates);
  const points = rates.map((rate, index) => `${CURVE - rates.length + index + 1},${(19 - 17 * (rate / highest)).toFixed(1)}`);
  byId("live-spark").setAttribute("points", points.join(" "));
}

function turn(state, code) {
  const before = strip.dataset.state;
  strip.dataset.state = state;
  const note = byId("live-lost");
  note.hidden = state !== "lost";
  note.dataset.words = code === "unauthorized" ? "locked" : "lost";
  note.textContent = words()[note.dataset.words];
  if ((before === "lost") !== (state === "lost")) changed(code);
}

async function poll() {
  let next = INTERVAL;
  try {
    latest = await stats();
    rates.push(latest.posts_per_second);
    rates.splice(0, rates.length - CURVE);
    turn(latest.posts_per_second > 0 ? "flowing" : "still", null);
    showLive();
  } catch (error) {
    // Who asks too often is not cut off: the numbers only grow older.
    if (error.code !== "rate_limited") turn("lost", error.code ?? "offline");
    next = Math.max(INTERVAL_AFTER_FAILURE, 1000 * (error.retryAfter ?? 0));
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, next);
}
