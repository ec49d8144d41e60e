// Result cards. What posts say is hostile until shown otherwise: it goes in as text only, each piece isolated, so that
// neither markup nor direction marks reach the page around it.

import { fillTime, percent, shortened } from "./text.js";
import { translate, words } from "./words.js";

export const THUMBNAIL = /^data:image\/(?:jpeg|png|webp);base64,[A-Za-z0-9+/=]+$/;
const MAX_TAGS = 4;

const template = document.getElementById("card");

/**
 * A card. `answer` has the threshold `min_score` and the set `moderated` of labels that moderation flags; `act` has
 * `similar(hit, thumbnail)`, `unfold(hit, thumbnail)`, `filter(name, value)`, and `thumbnail(postId)`, a promise.
 */
export function card(hit, answer, act) {
  const element = template.content.firstElementChild.cloneNode(true);
  translate(element);
  const find = (selector) => element.querySelector(selector);
  const table = words();

  find(".rank").textContent = hit.rank;
  const caption = shortened(hit.caption);
  find(".caption bdi").textContent = caption;
  find(".caption").title = caption;
  fillPicture(find(".picture"), hit, act);
  fillMeta(find, hit, act);

  const tags = find(".tags");
  for (const label of (hit.labels ?? []).slice(0, MAX_TAGS)) {
    // Of "set/label" the label is what a reader wants; the set is on hover.
    const name = String(label);
    const chip = button(name.slice(name.indexOf("/") + 1), table.filterLabel(shortened(name)));
    chip.className = answer.moderated.has(name) ? "label moderated" : "label";
    chip.addEventListener("click", () => act.filter("labels", name));
    tags.append(chip);
  }
  for (const tag of (hit.tags ?? []).slice(0, MAX_TAGS)) {
    const chip = button(tag, table.filterTag(shortened(tag)));
    chip.addEventListener("click", () => act.filter("tags", String(tag)));
    tags.append(chip);
  }

  if (hit.folded > 0) {
    const folded = find(".folded");
    folded.hidden = false;
    folded.textContent = table.folded(hit.folded);
    folded.addEventListener("click", () => act.unfold(hit, element.querySelector("img").src || null));
  }

  const probability = find(".probability");
  probability.textContent = percent(hit.probability);
  probability.title = table.probability;
  const meter = find(".meter");
  meter.ariaValueNow = hit.score.toFixed(3);
  meter.ariaLabel = table.cosine;
  const place = (value) => `${100 * Math.min(1, Math.max(0, value))}%`;
  find(".fill").style.width = place(hit.score);
  if (typeof answer.min_score === "number") {
    const threshold = find(".threshold");
    threshold.hidden = false;
    threshold.style.insetInlineStart = place(answer.min_score);
    threshold.title = table.threshold(answer.min_score.toFixed(3));
  }
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

function button(text, title) {
  const element = document.createElement("button");
  element.type = "button";
  element.title = title;
  const isolated = document.createElement("bdi");
  isolated.textContent = shortened(text, 80);
  element.append(isolated);
  return element;
}

function fillPicture(button, hit, act) {
  const table = words();
  const image = button.querySelector("img");
  const missing = button.querySelector(".no-picture");
  button.ariaLabel = table.searchSimilar(hit.rank, shortened(hit.caption, 80));
  const show = (thumbnail) => {
    image.src = thumbnail;
    image.alt = shortened(hit.caption, 200);
    image.hidden = false;
    button.addEventListener("click", () => act.similar(hit, thumbnail));
  };
  const lack = (text, state) => {
    missing.textContent = text;
    missing.dataset.state = state;
    missing.hidden = false;
    button.disabled = true;
  };
  if (hit.image_pending) {
    lack(table.picturePending, "pending");
  } else if (!hit.image) {
    lack(table.noPicture, "none");
  } else if (THUMBNAIL.test(hit.image.thumbnail ?? "")) {
    show(hit.image.thumbnail);
  } else if (hit.image.inline) {
    lack(table.pictureGone, "gone");
  } else {
    act.thumbnail(hit.post_id).then((thumbnail) => {
      if (!THUMBNAIL.test(thumbnail)) throw new Error("not a picture");
      show(thumbnail);
    }).catch(() => lack(table.pictureGone, "gone"));
  }
}

function fillMeta(find, hit, act) {
  const author = find(".author");
  if (hit.author) {
    author.firstElementChild.textContent = shortened(hit.author, 80);
    author.title = words().filterAuthor(shortened(hit.author, 200));
    author.addEventListener("click", () => act.filter("author", String(hit.author)));
  } else {
    author.remove();
  }
  const time = find("time");
  if (!fillTime(time, hit.created_at)) time.remove();

  const original = find(".original");
  const url = hit.image?.url;
  // Only what a click may open: a post could name javascript: or data: here.
  if (typeof url === "string" && /^https?:\/\//i.test(url)) {
    original.href = url;
    original.title = shortened(url, 200);
  } else {
    original.remove();
  }
}
