// A picture as the search's subject: chosen, dropped or pasted.

import { words } from "./words.js";

/** The server takes more, but its limit on the whole body is 30 MB and base64 adds a third. */
const MAX_MEGABYTES = 20;

/** Calls `use(name, dataUri)` for each picture given in any way, `fail(message)` for what is none. */
export function watchForPictures(use, fail) {
  const file = document.getElementById("file");
  const drop = document.getElementById("drop");

  file.addEventListener("change", () => {
    if (file.files.length > 0) read(file.files[0], use, fail);
    // Choosing the same file again is a change, too.
    file.value = "";
  });

  document.addEventListener("paste", (event) => {
    const picture = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    if (!picture) return;
    event.preventDefault();
    read(picture, use, fail);
  });

  // Entering a child fires before leaving its parent: only a count tells when the pointer has left the page.
  let depth = 0;
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    depth += 1;
    drop.hidden = false;
  });
  document.addEventListener("dragover", (event) => {
    if (holdsFile(event)) event.preventDefault();
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    depth = 0;
    drop.hidden = true;
    if (!holdsFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length > 0) read(event.dataTransfer.files[0], use, fail);
  });
}

function read(file, use, fail) {
  if (!file.type.startsWith("image/")) {
    fail(words().notPicture);
  } else if (file.size > MAX_MEGABYTES * 1_000_000) {
    fail(words().tooLarge(MAX_MEGABYTES));
  } else {
    const reader = new FileReader();
    reader.addEventListener("load", () => use(file.name, reader.result));
    reader.addEventListener("error", () => fail(words().unreadable));
    reader.readAsDataURL(file);
  }
}
