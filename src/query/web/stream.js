// Server-sent events over fetch: an EventSource can send no key, and does not say why it fails.

const FIRST_DELAY = 1000;
const LONGEST_DELAY = 30_000;
/** Without a byte for so long, keep-alive comments included, the stream is dead, whatever the connection says. */
const SILENCE = 60_000;
/** A stream that was live for so long and then ended in order did not fail: servers end streams to look at their clients anew. */
const LONG_LIVED = 60_000;

/**
 * Keeps a stream of events open. `open(signal, lastId)` gives the body, a ReadableStream, from behind the event with that id
 * where there was one; `told` has `event(name, data)` and
 * `state(name, detail)`: "live"; "down" with the milliseconds to the next attempt; "refused" with the error, after which
 * only `restart` tries again. Returns `{restart, stop}`.
 */
export function keepStream(open, told) {
  let own = null;
  let delay = FIRST_DELAY;
  let timer = 0;
  let lastId = "";

  async function run() {
    clearTimeout(timer);
    own?.abort();
    const controller = new AbortController();
    own = controller;
    let silence = 0;
    let since = Infinity;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => controller.abort(), SILENCE);
    };
    try {
      alive();
      const reader = (await open(controller.signal, lastId)).pipeThrough(new TextDecoderStream()).getReader();
      delay = FIRST_DELAY;
      told.state("live");
      since = performance.now();
      const parse = eventParser(told.event, (id) => { lastId = id; });
      for (;;) {
        const { done, value } = await reader.read();
        if (done && performance.now() - since > LONG_LIVED && own === controller) {
          run();
          return;
        }
        if (done) break;
        alive();
        parse(value);
      }
    } catch (error) {
      if (own !== controller) return;
      if (["unauthorized", "not_found", "method_not_allowed", "unprocessable"].includes(error.code)) {
        told.state("refused", error);
        return;
      }
    } finally {
      clearTimeout(silence);
    }
    if (own !== controller) return;
    // Scattered, so that the pages of a server that restarts do not all come back in one moment.
    const wait = delay * (0.75 + Math.random() / 2);
    delay = Math.min(2 * delay, LONGEST_DELAY);
    told.state("down", wait);
    timer = setTimeout(run, wait);
  }

  run();
  return {
    restart: () => {
      delay = FIRST_DELAY;
      run();
    },
    stop: () => {
      clearTimeout(timer);
      const last = own;
      own = null;
      last?.abort();
    },
  };
}

/**
 * Takes pieces of an event stream as they come, calls `use(name, data)` for each whole event, and `remember(id)` for each that
 * has an id (WHATWG HTML, 9.2.6).
 */
export function eventParser(use, remember) {
  let rest = "";
  let name = "";
  let data = [];
  let id = null;
  return (piece) => {
    const lines = (rest + piece).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (id !== null) remember(id);
        if (data.length > 0) use(name || "message", data.join("\n"));
        name = "";
        data = [];
        id = null;
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") name = value;
      else if (field === "data") data.push(value);
      else if (field === "id" && !value.includes("\0")) id = value;
    }
  };
}
