// What this browser keeps. Storage throws where it is switched off: what is kept then lasts as long as the page.

/** The value kept under `name`, or `otherwise`. */
export function recall(name, otherwise, storage = "localStorage") {
  try {
    const text = window[storage].getItem(`feedlens.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

export function keep(name, value, storage = "localStorage") {
  try {
    if (value === null) window[storage].removeItem(`feedlens.${name}`);
    else window[storage].setItem(`feedlens.${name}`, JSON.stringify(value));
  } catch {
    // Nothing is lost but the memory of it.
  }
}
