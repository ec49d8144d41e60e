// What posts say, and numbers and times, as the page writes them.

import { locale } from "./words.js";

/** Longer texts are cut before they reach the layout: nobody reads them on a card, and a megabyte of them is slow. */
const MAX_CHARACTERS = 600;
/** A letter with more marks than this is no word of any language, and would paint over what stands above and below. */
const MAX_MARKS = 4;
const MARKS = new RegExp(`(\\p{M}{${MAX_MARKS}})\\p{M}+`, "gu");

/** A post's text, cut to what a card can show. */
export function shortened(text, limit = MAX_CHARACTERS) {
  // Cut twice: first so that a hundred thousand characters are not searched for marks.
  const head = String(text ?? "").slice(0, 4 * limit).replace(MARKS, "$1");
  const characters = [...head];
  const whole = characters.length <= limit && String(text ?? "").length <= 4 * limit;
  return whole ? head : `${characters.slice(0, limit).join("")}…`;
}

export function percent(value) {
  const format = new Intl.NumberFormat(locale(), { style: "percent", maximumSignificantDigits: 3 });
  return value < 0.001 ? `<${format.format(0.001)}` : format.format(value);
}

const UNITS = [["year", 31_557_600], ["month", 2_629_800], ["week", 604_800], ["day", 86_400], ["hour", 3_600], ["minute", 60]];

function relative(time) {
  const seconds = (time.getTime() - Date.now()) / 1000;
  const format = new Intl.RelativeTimeFormat(locale(), { numeric: "auto" });
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return format.format(Math.trunc(seconds / size), unit);
}

/** Fills a `<time>`: relative, the absolute time on hover. False where there is no such time. */
export function fillTime(element, iso) {
  const time = new Date(iso ?? NaN);
  if (Number.isNaN(time.getTime())) return false;
  element.dateTime = time.toISOString();
  element.textContent = relative(time);
  element.title = time.toLocaleString(locale(), { dateStyle: "full", timeStyle: "medium" });
  return true;
}

/** "3 minutes ago" does not stay true. */
export function keepTimes() {
  setInterval(() => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("time[datetime]")) {
      element.textContent = relative(new Date(element.dateTime));
    }
  }, 20_000);
}
