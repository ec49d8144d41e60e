// Recent topics, kept in this browser only, suggested below the search box (the combobox pattern of ARIA).

import { keep, recall } from "./kept.js";

const KEPT = 30;
const SHOWN = 8;

const input = document.getElementById("topic");
const box = document.getElementById("suggestions-box");
const list = document.getElementById("suggestions");

let recent = recall("recent", []);
if (!Array.isArray(recent)) recent = [];
recent = recent.filter((topic) => typeof topic === "string").slice(0, KEPT);

/** Notes a topic that was searched for. */
export function remember(topic) {
  recent = [topic, ...recent.filter((other) => other !== topic)].slice(0, KEPT);
  keep("recent", recent);
}

function matching(typed) {
  const sought = typed.trim().toLocaleLowerCase();
  return recent.filter((topic) => topic !== typed.trim() && topic.toLocaleLowerCase().includes(sought)).slice(0, SHOWN);
}

function close() {
  box.hidden = true;
  input.ariaExpanded = "false";
  input.removeAttribute("aria-activedescendant");
}

function open() {
  const topics = matching(input.value);
  if (topics.length === 0) return close();
  list.replaceChildren(...topics.map((topic, index) => {
    const item = document.createElement("li");
    item.id = `suggestion-${index}`;
    item.role = "option";
    item.ariaSelected = "false";
    item.title = topic;
    const text = document.createElement("bdi");
    text.textContent = topic;
    item.append(text);
    return item;
  }));
  box.hidden = false;
  input.ariaExpanded = "true";
  input.removeAttribute("aria-activedescendant");
}

function select(step) {
  const items = [...list.children];
  const present = items.findIndex((item) => item.ariaSelected === "true");
  const next = (present + step + items.length + (present < 0 && step < 0 ? 1 : 0)) % items.length;
  for (const [index, item] of items.entries()) item.ariaSelected = String(index === next);
  input.setAttribute("aria-activedescendant", items[next].id);
  items[next].scrollIntoView({ block: "nearest" });
}

/** Calls `choose(topic)` for a suggestion that is taken. */
export function suggestRecent(choose) {
  input.addEventListener("input", open);
  input.addEventListener("click", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const closed = box.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      // With nothing to suggest, or closed while cards are shown, the arrow is the page's: it enters the cards.
      if (closed && (event.key === "ArrowUp" || input.value.trim() !== "" || matching("").length === 0)) return;
      if (closed) open();
      select(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Escape" && !closed) {
      close();
    } else if (event.key === "Enter" && !closed) {
      const chosen = list.querySelector("[aria-selected=true]");
      close();
      if (!chosen) return;
      choose(chosen.title);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  // Pressed, and not clicked: the box closes when the input loses the focus, which a press would take.
  box.addEventListener("mousedown", (event) => {
    event.preventDefault();
    const item = event.target.closest("[role=option]");
    if (!item) return;
    close();
    choose(item.title);
  });
  document.getElementById("suggestions-clear").addEventListener("click", () => {
    recent = [];
    keep("recent", null);
    close();
  });
}
