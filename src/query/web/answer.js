// The result area: placeholders, the cards of an answer, and what is told where there is none.

import { ApiError, thumbnail, useKey } from "./api.js";
import { card, placeholder } from "./cards.js";
import { moderated } from "./filters.js";
import { TOP_K, activeFilters } from "./query.js";
import { locale, words } from "./words.js";

const byId = (id) => document.getElementById(id);
const cards = byId("cards");
const results = byId("results");

let act = {};
/** What the area shows, to show it anew in the other language. */
let shown = () => {};
/** The code of the failure that is shown, or null. */
let failure = null;
let countdown = 0;

/** `actions`: those of the cards, and `retry()`, `more()`, `nearest()`, `loosen()`. */
export function prepareAnswers(actions) {
  act = { ...actions, thumbnail };
  byId("retry").addEventListener("click", actions.retry);
  byId("more").addEventListener("click", actions.more);
  byId("nearest").addEventListener("click", actions.nearest);
  byId("loosen").addEventListener("click", actions.loosen);
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key-value").value.trim());
    byId("key-value").value = "";
    actions.keyGiven();
  });
}

export function shownFailure() {
  return failure;
}

export function showAgain() {
  shown();
}

/** The cards that are there, if they are not replaced in a moment anyway. */
export function drawAgain() {
  if (results.getAttribute("aria-busy") !== "true") shown();
}

export function setBusy(busy) {
  results.setAttribute("aria-busy", String(busy));
}

function show(view) {
  shown = view;
  view();
}

function clear() {
  clearInterval(countdown);
  failure = null;
  cards.replaceChildren();
  byId("summary").textContent = "";
  byId("notice").hidden = true;
  byId("more").hidden = true;
}

export function showNothing() {
  show(clear);
}

export function showLoading() {
  clear();
  byId("summary").textContent = words().loading;
  cards.replaceChildren(...Array.from({ length: TOP_K }, placeholder));
}

/** `hits` are all hits so far, of this answer and of those before it. */
export function showAnswer(query, answer, hits) {
  show(() => {
    clear();
    if (hits.length === 0) return showEmpty(query, answer);
    const number = new Intl.NumberFormat(locale(), { maximumFractionDigits: 1 });
    byId("summary").textContent = words().summary(hits.length, answer.candidates, number.format(answer.took_ms));
    const looks = { min_score: answer.min_score ?? null, moderated };
    cards.replaceChildren(...hits.map((hit) => card(hit, looks, act)));
    // A server that names its offset can give further ones.
    byId("more").hidden = !Number.isInteger(answer.offset) || answer.hits.length < TOP_K;
  });
}

/** Cards that were already there keep the focus. */
export function focusCard(index) {
  cards.querySelectorAll(".picture")[index]?.focus();
}

function showEmpty(query, answer) {
  const table = words();
  const filtered = activeFilters(query).length > 0;
  if (typeof answer.min_score === "number") {
    const text = filtered ? table.nothingFitsFiltered : table.nothingFits;
    notice("empty", table.nothingFitsTitle, text(answer.min_score.toFixed(3)), { nearest: true, loosen: filtered });
  } else {
    notice("empty", table.emptyTitle, filtered ? table.emptyFiltered : table.emptyFeed, { loosen: filtered });
  }
  byId("summary").textContent = "";
}

export function showFailure(error) {
  const until = performance.now() + 1000 * (error.retryAfter ?? 0);
  show(() => {
    clear();
    const table = words();
    const code = error instanceof ApiError ? error.code : "offline";
    failure = code;
    if (code === "unauthorized") {
      notice("key", table.keyTitle, table.keyText, { key: true });
      byId("key-value").focus();
    } else if (code === "offline") {
      notice("offline", table.offlineTitle, table.offlineText, { retry: true });
    } else if (code === "overloaded" || code === "rate_limited") {
      const own = code === "rate_limited";
      const title = own ? table.rateLimitedTitle : table.overloadedTitle;
      notice("wait", title, own ? table.rateLimitedText : table.overloadedText, { retry: true });
      countDown(until);
    } else if (code === "unavailable") {
      notice("failed", table.unavailableTitle, error.message, { retry: true });
    } else {
      notice("failed", table.failedTitle, error.message, { retry: code === "internal" });
    }
  });
}

/** The server said when: until then the button waits, and then asks by itself, if someone looks. */
function countDown(until) {
  const button = byId("retry");
  const step = () => {
    const seconds = Math.ceil((until - performance.now()) / 1000);
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? words().retryIn(seconds) : words().retry;
    if (seconds > 0) return;
    clearInterval(countdown);
    if (!document.hidden) act.retry();
  };
  if (until <= performance.now()) return;
  step();
  countdown = setInterval(step, 250);
}

export function showMessage(title, text) {
  show(() => {
    clear();
    notice("failed", title, text);
  });
}

function notice(icon, title, text, { retry = false, key = false, nearest = false, loosen = false } = {}) {
  byId("notice").dataset.kind = icon;
  byId("notice-icon").setAttribute("href", `#icon-${icon}`);
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  byId("retry").hidden = !retry;
  byId("retry").disabled = false;
  byId("retry").textContent = words().retry;
  byId("key").hidden = !key;
  byId("nearest").hidden = !nearest;
  byId("loosen").hidden = !loosen;
  byId("notice").hidden = false;
}
