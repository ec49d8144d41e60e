// Result cards. What posts say is hostile until shown otherwise: it goes in as text only, each piece isolated, so that
// neither markup nor direction marks reach the page around it.

import { locale, translate, words } from "./words.js";

const THUMBNAIL = /^data:image\/(?:jpeg|png|webp);base64,[A-Za-z0-9+/=]+$/;
const MAX_TAGS = 4;
/** Longer texts are cut before they reach the layout: nobody reads them on a card, and a megabyte of them is slow. */
const MAX_CHARACTERS = 600;

const template = document.getElementById("card");

/** A card. `act` has `similar(hit, thumbnail)`, `filter(name, value)`, and `thumbnail(postId)`, a promise. */
export function card(hit, act) {
  const element = template.content.firstElementChild.cloneNode(true);
  translate(element);
  const find = (selector) => element.querySelector(selector);
  const table = words();

  find(".rank").textContent = hit.rank;
  find(".caption bdi").textContent = shortened(hit.caption ?? "");
  find(".caption").title = shortened(hit.caption ?? "");
  fillPicture(find(".picture"), hit, act);
  fillMeta(find, hit, act);

  const tags = find(".tags");
  for (const tag of (hit.tags ?? []).slice(0, MAX_TAGS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = table.filterTag(shortened(tag));
    const text = document.createElement("bdi");
    text.textContent = shortened(tag);
    button.append(text);
    button.addEventListener("click", () => act.filter("tag", tag));
    tags.append(button);
  }

  const percent = new Intl.NumberFormat(locale(), { style: "percent", maximumSignificantDigits: 3 });
  const probability = find(".probability");
  probability.textContent = hit.probability < 0.001 ? `<${percent.format(0.001)}` : percent.format(hit.probability);
  probability.title = table.probability;
  const meter = find(".meter");
  meter.ariaValueNow = hit.score.toFixed(3);
  meter.ariaLabel = table.cosine;
  find(".fill").style.width = `${100 * Math.min(1, Math.max(0, hit.score))}%`;
  find(".cosine").textContent = hit.score.toFixed(3);
  find(".cosine").title = `${table.cosine} (${table.scoreOf[hit.matched] ?? ""})`;
  return element;
}

/** A card's place while the answer is under way. */
export function placeholder() {
  const element = document.createElement("li");
  element.className = "card loading";
  element.ariaHidden = "true";
  for (const part of ["picture", "line", "line short"]) {
    const block = document.createElement("div");
    block.className = part;
    element.append(block);
  }
  return element;
}

function fillPicture(button, hit, act) {
  const table = words();
  const image = button.querySelector("img");
  const missing = button.querySelector(".no-picture");
  button.ariaLabel = table.searchSimilar(hit.rank);
  const show = (thumbnail) => {
    image.src = thumbnail;
    image.alt = shortened(hit.caption ?? "");
    image.hidden = false;
    button.addEventListener("click", () => act.similar(hit, thumbnail));
  };
  const lack = (text) => {
    missing.textContent = text;
    missing.hidden = false;
    button.disabled = true;
  };
  if (!hit.image) {
    lack(table.noPicture);
  } else if (THUMBNAIL.test(hit.image.thumbnail ?? "")) {
    show(hit.image.thumbnail);
  } else if (hit.image.inline) {
    lack(table.pictureGone);
  } else {
    act.thumbnail(hit.post_id).then((thumbnail) => {
      if (!THUMBNAIL.test(thumbnail)) throw new Error("not a picture");
      show(thumbnail);
    }).catch(() => lack(table.pictureGone));
  }
}

function fillMeta(find, hit, act) {
  const author = find(".author");
  if (hit.author) {
    author.firstElementChild.textContent = shortened(hit.author);
    author.title = words().filterAuthor(shortened(hit.author));
    author.addEventListener("click", () => act.filter("author", hit.author));
  } else {
    author.remove();
  }

  const time = find("time");
  const created = new Date(hit.created_at ?? NaN);
  if (Number.isNaN(created.getTime())) {
    time.remove();
  } else {
    time.dateTime = created.toISOString();
    time.textContent = created.toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });
  }

  const original = find(".original");
  const url = hit.image?.url;
  // Only what a click may open: a post could name javascript: or data: here.
  if (typeof url === "string" && /^https?:\/\//i.test(url)) {
    original.href = url;
    original.title = shortened(url);
  } else {
    original.remove();
  }
}

function shortened(text) {
  const characters = String(text);
  return characters.length > MAX_CHARACTERS ? `${characters.slice(0, MAX_CHARACTERS)}…` : characters;
}
