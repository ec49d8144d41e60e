// The filters: the panel below the search box, and a chip for each one in force.

import * as api from "./api.js";
import { activeFilters, moment, wallClock, withoutFilter, withoutFilters } from "./query.js";
import { shortened } from "./text.js";
import { locale, words } from "./words.js";

const byId = (id) => document.getElementById(id);
const form = byId("search");
const panel = byId("filters");
const toggle = byId("filters-toggle");
const field = (name) => form.elements[name];

let change = () => {};
let present = () => null;
let sets = [];
/** Labels of sets that moderate, as "set/label". */
export const moderated = new Set();

export function openFilters(open) {
  panel.hidden = !open;
  toggle.ariaExpanded = String(open);
}

/** Puts a query's filters into the panel and the chips. */
export function showFilters(query) {
  field("target").value = query.target;
  for (const name of ["author", "lang"]) field(name).value = query[name];
  for (const name of ["since", "until"]) field(name).value = wallClock(query[name]);
  field("tag").value = "";
  field("label").value = "";
  const active = activeFilters(query);
  byId("filters-count").hidden = active.length === 0;
  byId("filters-count").textContent = active.length;
  byId("filters-clear").disabled = active.length === 0;
  const chips = active.map((filter) => chip(chipText(filter), () => change(withoutFilter(present(), filter))));
  if (query.nearest) chips.push(chip(words().nearestChip, () => change({ ...present(), nearest: false })));
  if (query.unfolded) chips.push(chip(words().unfoldedChip, () => change({ ...present(), unfolded: false })));
  byId("chips").replaceChildren(...chips);
}

function chip(text, remove) {
  const item = document.createElement("li");
  item.className = "chip";
  const name = document.createElement("bdi");
  name.textContent = shortened(text, 60);
  const button = document.createElement("button");
  button.type = "button";
  button.ariaLabel = words().removeFilter(shortened(text, 60));
  button.textContent = "×";
  button.addEventListener("click", remove);
  item.append(name, button);
  return item;
}

function chipText({ name, value }) {
  const table = words();
  if (name === "since" || name === "until") {
    return `${table[name]} ${new Date(value).toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" })}`;
  }
  if (name === "tags") return `#${value}`;
  if (name === "lang") return `${table.language}: ${value}`;
  return value;
}

/** The choice of labels; hidden where the server has none. `changed()`: cards are drawn otherwise from now on. */
export async function loadLabels(changed) {
  try {
    sets = await api.labelSets();
  } catch {
    sets = [];
  }
  const before = [...moderated].join();
  moderated.clear();
  for (const set of sets) {
    if (set.moderation) for (const label of set.labels) moderated.add(`${set.name}/${label}`);
  }
  showLabels();
  if ([...moderated].join() !== before) changed();
}

export function showLabels() {
  byId("label-field").hidden = sets.length === 0;
  const none = new Option(words().anyLabel, "");
  const groups = sets.map((set) => {
    const group = document.createElement("optgroup");
    group.label = set.name;
    group.append(...set.labels.map((label) => new Option(label, `${set.name}/${label}`)));
    return group;
  });
  field("label").replaceChildren(none, ...groups);
}

/** `query()` gives the present query; `changed(query)` is called with each other one. */
export function watchFilters(query, changed) {
  present = query;
  change = changed;
  toggle.addEventListener("click", () => openFilters(panel.hidden));
  byId("filters-clear").addEventListener("click", () => change(withoutFilters(present())));
  form.addEventListener("change", (event) => {
    const { name, value } = event.target;
    if (["target", "author", "lang"].includes(name)) {
      change({ ...present(), [name]: value.trim() });
    } else if (name === "since" || name === "until") {
      // The field has the viewer's wall clock, addresses and requests have moments.
      change({ ...present(), [name]: moment(value) });
    } else if (name === "tag" || name === "label") {
      addTo(`${name}s`, value.trim());
    }
  });
  panel.addEventListener("keydown", (event) => {
    // Enter in a field that changed fires "change" by itself, and would then submit the search once more.
    if (event.key === "Enter" && event.target.matches("input")) {
      event.preventDefault();
      event.target.blur();
      event.target.focus();
    }
  });
  for (const preset of panel.querySelectorAll("[data-hours]")) {
    preset.addEventListener("click", () => {
      const since = new Date(Date.now() - preset.dataset.hours * 3_600_000);
      since.setSeconds(0, 0);
      change({ ...present(), since: since.toISOString(), until: "" });
    });
  }
}

/** Sets or adds a filter, as a click on a card's author, tag or label does. */
export function addFilter(name, value) {
  if (name === "tags" || name === "labels") addTo(name, value);
  else change({ ...present(), [name]: value });
}

function addTo(name, value) {
  if (value) change({ ...present(), [name]: [...new Set([...present()[name], value])] });
}
