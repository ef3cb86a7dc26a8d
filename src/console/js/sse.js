// Server-sent events from a stream of text (HTML, section 9.2.6), read by hand because `EventSource` can send no
// `Authorization`.
//
// Invariant: no more than SSE_CHARACTERS_MAX of an event or of a line is kept; what is beyond is left out, and the event
// says so.

/** Characters kept of the data of one event, and of one line. The server's lines are far shorter. */
const SSE_CHARACTERS_MAX = 256 * 1024;

/** Puts events together from pieces of text, wherever these are cut. */
class SseParser {
  #line = "";
  #isLineCut = false;
  #endedByCr = false;
  #hasBegun = false;
  #event = sseNoEvent();

  /** Takes the next piece of text; returns the events that are whole now: `{word, data, isCut}`. */
  feed(text) {
    const events = [];
    let from = 0;
    if (!this.#hasBegun && text.length > 0) {
      this.#hasBegun = true;
      if (text.startsWith("\uFEFF")) from = 1;
    }
    if (this.#endedByCr && text.length > from) {
      // The CR LF of a line was cut in two.
      if (text[from] === "\n") from += 1;
      this.#endedByCr = false;
    }
    const end = /\r\n|\r|\n/g;
    end.lastIndex = from;
    for (let found = end.exec(text); found !== null; found = end.exec(text)) {
      this.#keep(text.slice(from, found.index));
      from = end.lastIndex;
      this.#endedByCr = found[0] === "\r" && from === text.length;
      const event = this.#takeLine();
      if (event !== null) events.push(event);
    }
    this.#keep(text.slice(from));
    return events;
  }

  #keep(piece) {
    const room = SSE_CHARACTERS_MAX - this.#line.length;
    this.#isLineCut ||= piece.length > room;
    this.#line += piece.slice(0, room);
  }

  /** Takes the line that has ended; an empty one ends the event. */
  #takeLine() {
    const line = this.#line;
    this.#event.isCut ||= this.#isLineCut;
    this.#line = "";
    this.#isLineCut = false;
    if (line === "") {
      const event = this.#event;
      this.#event = sseNoEvent();
      return event.data === null ? null : event;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") {
      this.#event.word = value;
    } else if (name === "data") {
      const data = this.#event.data === null ? value : `${this.#event.data}\n${value}`;
      this.#event.isCut ||= data.length > SSE_CHARACTERS_MAX;
      this.#event.data = data.slice(0, SSE_CHARACTERS_MAX);
    }
    return null;
  }
}

function sseNoEvent() {
  return { word: "message", data: null, isCut: false };
}

/** The events of a body (`Response.body`), as they come. Ends with the body; throws as it does. */
async function* sseEvents(body) {
  const parser = new SseParser();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const reader = body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    yield* parser.feed(decoder.decode(value, { stream: true }));
  }
}
