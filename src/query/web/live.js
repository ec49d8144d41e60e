// The live strip: polls once a second while someone looks.

import { stats } from "./api.js";
import { locale } from "./words.js";

const INTERVAL = 1000;
/** After a failure: a server that restarts is not helped by a question a second from each open page. */
const INTERVAL_AFTER_FAILURE = 3000;

const strip = document.getElementById("live");
const pulse = strip.querySelector(".pulse");
let timer = 0;
let latest = null;

export function startLive() {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) poll();
  });
  poll();
}

/** Anew, in the present language. */
export function showLive() {
  if (!latest) return;
  const exact = new Intl.NumberFormat(locale());
  const compact = new Intl.NumberFormat(locale(), { notation: "compact", maximumFractionDigits: 1 });
  const number = { format: (value) => (value < 10_000 ? exact : compact).format(value) };
  const rate = new Intl.NumberFormat(locale(), { maximumFractionDigits: latest.posts_per_second < 10 ? 1 : 0 });
  const set = (name, value, format = number) => {
    const element = document.getElementById(`live-${name}`);
    const tile = element.parentElement;
    tile.hidden = value === null;
    if (value === null) return;
    element.textContent = format.format(value);
    element.title = exact.format(value);
  };
  set("rate", latest.posts_per_second, rate);
  set("indexed", latest.indexed);
  set("dead", latest.dead_lettered);
  set("lag", latest.lag);
  set("searches", latest.searches);
  const posts = document.getElementById("live-posts");
  posts.textContent = latest.posts === null ? "?" : number.format(latest.posts);
  posts.title = latest.posts === null ? "" : exact.format(latest.posts);
  const model = document.getElementById("live-model");
  model.textContent = latest.model;
  model.title = latest.model;
  document.getElementById("live-dead").parentElement.classList.toggle("some", latest.dead_lettered > 0);
  pulse.dataset.state = latest.posts_per_second > 0 ? "flowing" : "still";
}

async function poll() {
  let next = INTERVAL;
  try {
    latest = await stats();
    showLive();
  } catch {
    pulse.dataset.state = "lost";
    next = INTERVAL_AFTER_FAILURE;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, next);
}
