// The view `#trace`: what happens to a session, an account or a key, as it happens, and why an event did not arrive.
// `#trace?session=IP:PORT` fills in the form, as do `account`, `key` and `event`.
//
// Invariants: one look is under way at a time, begun by the user and never by an address: a link on another page must not
// take a place among the lookers. It goes on while another view is seen, and ends when the user stops it or the
// page goes. No more than TRACE_LINES_MAX lines and TRACE_CHARACTERS_MAX characters are kept; the oldest go first, and the
// view says how many went. Lines are drawn once a frame, however many come. All that a line says is foreign text.

/** Lines that are kept, and the characters of all of them. */
const TRACE_LINES_MAX = 5000;
const TRACE_CHARACTERS_MAX = 8 * 1024 * 1024;

/** A look that was lost is begun again after a random time of up to the first, doubled each time up to the second. */
const TRACE_AGAIN_FIRST = 1000;
const TRACE_AGAIN_MAX = 15_000;

/** What is looked at: the members of the question, as the fields of the form. */
const TRACE_FIELDS = [
  { name: "session", label: "Session", hint: "203.0.113.7:51034" },
  { name: "account", label: "Account", hint: "32 hex digits" },
  { name: "key", label: "Key", hint: "call.CHANNEL_CREATE.*" },
  { name: "event", label: "Only events named", hint: "CHANNEL_CREATE" },
];

/** What another view of this page wants looked at, until it is; `null`: nothing. */
let traceWish = null;

/** Shows the view, and looks at a session. */
function traceSession(session) {
  traceWish = { session };
  openView("trace", traceWish);
}

/** What to do about an event that did not arrive, by the words of the server. */
const TRACE_ADVICE = {
  "exchange or family stopped": "The family is switched off (autoload_modules), or no family has this exchange.",
  "account not this session's":
    "The event is another account's, or names none: look at the token, the account of the subscribe, or the publisher.",
  "other event word": "Something else happened than what the session asked for.",
  "not bound by this session": "Others asked for it; this session did not.",
  "nobody bound the key": "Nobody asked for it.",
  "session slow: dropped": "The client does not read fast enough. Under slow_consumer close its end follows.",
};

/** The tone of a line, by its word; the others have none. */
const TRACE_TONES = {
  matched: "good",
  not_matched: "warn",
  left_out: "warn",
  subscriptions_ended: "warn",
  going_away: "warn",
  closed: "bad",
  lost: "bad",
};

/** A line of the trace from an event of the stream. `number`: names it among the lines. */
function traceLine({ word, data, isCut }, number) {
  let members = null;
  if (!isCut) {
    try {
      members = JSON.parse(data);
    } catch {
      // Not of this version: shown as it is.
    }
  }
  if (members === null || typeof members !== "object") members = { text: data.slice(0, 1000) };
  const tone = members.outcome === "error" ? "bad" : (TRACE_TONES[word] ?? "");
  return { number, word, members, tone, text: showMarks(traceText(word, members)), size: data.length };
}

/** What a line tells, but for its time, its session and its word. */
function traceText(word, members) {
  const one = (name) => traceValue(members[name]);
  const list = (...parts) => parts.filter(Boolean).join(", ");
  switch (word) {
    case "looking":
      return list(
        members.session && (members.there ? "the session is here" : "the session is not here (yet)"),
        members.bindings && `${members.bindings.length} ${members.bindings.length === 1 ? "binding" : "bindings"}`,
        members.keys?.length > 0 && `${members.keys.length} ${members.keys.length === 1 ? "key" : "keys"} to bind`,
        members.keys_without_room > 0 && `no room for ${members.keys_without_room} more keys`,
        members.stopped?.length > 0 && `stopped: ${members.stopped.join(", ")}`,
        `source ${one("source")}`,
      );
    case "bound":
      return `${one("exchange")} ${one("key")}`;
    case "opened":
      return list(members.account_id && `account ${one("account_id")}`, members.style && `style ${one("style")}`);
    case "command":
      return traceCommand(members);
    case "matched": {
      const dropped = members.dropped > 0 ? `, ${one("dropped")} dropped` : "";
      const sessions = members.sessions === undefined ? "" : `, ${one("sessions")} sessions`;
      return `${one("routing_key")} → ${one("subscribed_key")}: ${one("queued")} queued${dropped}${sessions}`;
    }
    case "not_matched":
      return `${one("routing_key")}: ${one("why")}`;
    case "written":
      return list(`${one("bytes")} bytes`, members.waiting_bytes > 0 && `${one("waiting_bytes")} wait`);
    case "subscriptions_ended":
      return `${one("bindings")}: ${one("reason")}`;
    case "going_away":
      return `within ${one("within_ms")} ms`;
    case "closed":
      return members.code === undefined ? one("reason") : `${one("reason")} (${one("code")})`;
    case "source":
      return one("state");
    case "left_out":
      return list(members.lines > 0 && `${one("lines")} lines`, members.events > 0 && `${one("events")} events`);
    case "ended":
      return one("why");
    default:
      return Object.entries(members)
        .filter(([name]) => name !== "at" && name !== "session")
        .map(([name, value]) => `${name} ${traceValue(value)}`)
        .join(", ");
  }
}

function traceCommand(members) {
  const what = [members.action, traceValue(members.bindings)].filter(Boolean).join(" ");
  const outcomes = {
    error: `refused: ${traceValue(members.errors)}`,
    waits: `waits for the ${traceValue(members.waits_for)}`,
  };
  return `${what}: ${outcomes[members.outcome] ?? traceValue(members.outcome)}`;
}

/** A value in a line of text. */
function traceValue(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(traceValue).join(", ");
  if (typeof value === "object") return Object.values(value).map(traceValue).join(" ");
  return String(value);
}

/** Whether a line has this text, which is in small letters. */
function traceHas(line, text) {
  line.small ??= traceWhole(line).toLowerCase();
  return line.small.includes(text);
}

/** A line as text. */
function traceWhole({ word, members, text }) {
  const at = typeof members.at === "number" ? timeText(members.at) : "";
  return [at, members.session ?? "", word.replaceAll("_", " "), text].filter(Boolean).join("  ");
}

/** Lines that are kept, the oldest first, bounded. */
class TraceLines {
  all = [];
  /** Lines that had to go. */
  gone = 0;
  #characters = 0;
  #next = 1;

  /** Takes an event of the stream. */
  push(event) {
    const line = traceLine(event, this.#next);
    this.#next += 1;
    this.all.push(line);
    this.#characters += line.size;
    let going = 0;
    while (this.all.length - going > TRACE_LINES_MAX || (this.#characters > TRACE_CHARACTERS_MAX && going < this.all.length - 1)) {
      this.#characters -= this.all[going].size;
      going += 1;
    }
    this.all.splice(0, going);
    this.gone += going;
    return line;
  }

  clear() {
    this.all = [];
    this.gone = 0;
    this.#characters = 0;
  }
}

/** The view. */
class TraceView {
  #lines = new TraceLines();
  #look = null;
  #isPaused = false;
  #selected = null;
  #inputs = new Map();
  #list;
  #redraw = perFrame(() => this.#draw());
  #state = el("p", { class: "pill", "data-tone": "quiet" }, el("i", { class: "dot" }), el("span", {}, "Not looking"));
  #begin = el("button", { class: "main" }, "Start");
  #stop = el("button", { type: "button", disabled: true, onclick: () => this.#end("Stopped") }, "Stop");
  #wrong = el("p", { class: "wrong", role: "alert" });
  #filter = el("input", { type: "search", placeholder: "Filter lines", "aria-label": "Filter lines", spellcheck: "false", autocomplete: "off" });
  #quiet = el("button", { class: "chip", "aria-pressed": "true", onclick: () => this.#toggle(this.#quiet) }, "Hide written");
  #pause = el("button", { class: "plain", "aria-pressed": "false", onclick: () => this.#togglePause() }, "Pause");
  #foot = el("p", { class: "stream-foot" });
  #empty = emptyState(
    "Connected, and receives nothing: why?",
    el("p", {}, "Look at a session, an account or a key: you see what happens to it as it happens, and why an event did not arrive."),
  );
  #viewport = el("div", { class: "window grow trace-window", role: "listbox", tabindex: "0", "aria-label": "Lines of the trace, newest first", hidden: true });
  #detail = el("div", { class: "detail", hidden: true });

  constructor(root) {
    const space = el("div", { class: "window-space", role: "presentation" });
    this.#viewport.append(space);
    const fields = TRACE_FIELDS.map(({ name, label, hint }) => {
      const input = el("input", { class: "mono", name, placeholder: hint, spellcheck: "false", autocomplete: "off" });
      this.#inputs.set(name, input);
      return el("label", { class: "field" }, label, input);
    });
    root.append(
      el("h2", { class: "unseen" }, "Trace"),
      el(
        "form",
        { class: "card trace-form", onsubmit: (event) => this.#submit(event) },
        ...fields,
        el("div", { class: "row trace-buttons" }, this.#begin, this.#stop, this.#state),
        this.#wrong,
      ),
      el(
        "div",
        { class: "card stream trace-stream" },
        el(
          "div",
          { class: "stream-tools" },
          el("div", { class: "find" }, this.#filter),
          this.#quiet,
          this.#pause,
          el("button", { class: "plain", onclick: () => this.#clear() }, "Clear"),
          el("button", { class: "plain", onclick: () => this.#copy() }, "Copy"),
          el("button", { class: "plain", onclick: () => this.#save() }, "Export"),
        ),
        el("div", { class: "stream-body" }, el("div", { class: "stream-list" }, this.#empty, this.#viewport), this.#detail),
        this.#foot,
      ),
    );
    this.#list = new VirtualList({
      viewport: this.#viewport,
      space,
      keyOf: ({ number }) => number,
      create: () => this.#createRow(),
      fill: (element, line) => this.#fillRow(element, line),
    });
    this.#filter.addEventListener("input", () => this.#redraw());
    this.#viewport.addEventListener("keydown", (event) => this.#onKey(event));
    window.addEventListener("pagehide", () => this.#look?.abort());
    this.#draw();
  }

  show(parameters) {
    const isAsked = TRACE_FIELDS.some(({ name }) => parameters.has(name));
    // What is in the form while a look goes on is what is looked at.
    if (isAsked && (this.#look === null || traceWish !== null)) {
      for (const [name, input] of this.#inputs) input.value = parameters.get(name) ?? "";
    }
    if (traceWish !== null && parameters.get("session") === traceWish.session) this.#start();
    traceWish = null;
    this.#redraw();
  }

  hide() {}

  #submit(event) {
    event.preventDefault();
    this.#start();
  }

  #question() {
    const given = [...this.#inputs].map(([name, input]) => [name, input.value.trim()]);
    return Object.fromEntries(given.filter(([, value]) => value !== ""));
  }

  #start() {
    const question = this.#question();
    if (!question.session && !question.account && !question.key) {
      setText(this.#wrong, "Say what to look at: a session, an account or a key.");
      this.#inputs.get("session").focus();
      return;
    }
    setText(this.#wrong, "");
    this.#look?.abort();
    const look = new AbortController();
    this.#look = look;
    this.#clear();
    this.#stop.disabled = false;
    this.#follow(look, sessionsPath("/trace", question));
  }

  /** Follows a look, and begins it again when it is lost, until it ends. */
  async #follow(look, path) {
    const { signal } = look;
    for (let wait = TRACE_AGAIN_FIRST; !signal.aborted; wait = Math.min(2 * wait, TRACE_AGAIN_MAX)) {
      this.#say("busy", "Connecting");
      try {
        const { body } = await api(path, { signal });
        for await (const event of sseEvents(body)) {
          if (signal.aborted) return;
          const { word, members } = this.#lines.push(event);
          if (word === "looking") this.#say("good", "Looking");
          this.#redraw();
          if (word === "ended") return this.#end(`Ended: ${traceEnd(members.why)}`);
          wait = TRACE_AGAIN_FIRST / 2;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ApiError && error.status !== 0) {
          setText(this.#wrong, error.message);
          return this.#end("Refused");
        }
      }
      if (signal.aborted) return;
      this.#lines.push({ word: "lost", data: JSON.stringify({ at: Date.now(), why: "the server does not answer" }), isCut: false });
      this.#redraw();
      this.#say("bad", "Lost; looking again soon");
      await new Promise((resolve) => setTimeout(resolve, Math.random() * wait));
    }
  }

  /** The look is over. */
  #end(words) {
    this.#look?.abort();
    this.#look = null;
    this.#stop.disabled = true;
    this.#say("quiet", words);
  }

  #say(tone, words) {
    this.#state.dataset.tone = tone;
    if (this.#state.lastChild.textContent === words) return;
    setText(this.#state.lastChild, words);
    announce(`Trace: ${words}`);
  }

  #toggle(button) {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    this.#redraw();
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    this.#pause.setAttribute("aria-pressed", String(this.#isPaused));
    this.#redraw();
  }

  #clear() {
    this.#lines.clear();
    this.#select(null);
    this.#isPaused = false;
    this.#pause.setAttribute("aria-pressed", "false");
    this.#redraw();
  }

  #draw() {
    if (!this.#isPaused) {
      const filter = this.#filter.value.trim().toLowerCase();
      const isQuiet = this.#quiet.getAttribute("aria-pressed") === "true";
      const shown = this.#lines.all.filter(
        (line) => !(isQuiet && line.word === "written") && (filter === "" || traceHas(line, filter)),
      );
      this.#list.setRows(shown.reverse());
    }
    const shown = this.#list.rows.length;
    this.#empty.hidden = shown > 0;
    this.#viewport.hidden = shown === 0;
    setText(this.#foot, this.#footWords(shown));
    this.#list.refresh();
  }

  #footWords(shown) {
    const newest = this.#lines.all.at(-1)?.number ?? 0;
    const drawn = this.#list.rows[0]?.number ?? 0;
    return [
      `${countText(shown)} of ${countText(this.#lines.all.length)} lines`,
      this.#isPaused && newest > drawn ? "paused, newer ones wait" : "",
      this.#lines.gone > 0 ? `${countText(this.#lines.gone)} older ones had to go` : "",
    ]
      .filter(Boolean)
      .join("; ");
  }

  #createRow() {
    const element = el(
      "div",
      { class: "line", role: "option", onclick: () => this.#select(element.line) },
      el("span", { class: "at" }),
      el("span", { class: "tag" }),
      el("bdi", { class: "who mono" }),
      el("bdi", { class: "about" }),
    );
    return element;
  }

  #fillRow(element, line) {
    element.setAttribute("aria-selected", String(line === this.#selected));
    if (element.line === line) return;
    element.line = line;
    element.id = `trace-line-${line.number}`;
    const [at, tag, who, about] = element.children;
    setText(at, typeof line.members.at === "number" ? timeText(line.members.at) : "");
    setText(tag, line.word.replaceAll("_", " "));
    tag.dataset.tone = line.tone;
    setText(who, line.members.session ?? "");
    setText(about, line.text);
  }

  #onKey(event) {
    const rows = this.#list.rows;
    const at = rows.indexOf(this.#selected);
    const page = 10;
    const next = {
      ArrowDown: at + 1,
      ArrowUp: at < 0 ? 0 : at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: rows.length - 1,
    }[event.key];
    if (event.key === "Escape") this.#select(null);
    if (next === undefined || rows.length === 0) return;
    event.preventDefault();
    const to = Math.max(0, Math.min(rows.length - 1, next));
    this.#select(rows[to]);
    this.#list.show(to);
  }

  /** Shows all that a line tells; `null`: of none. */
  #select(line) {
    this.#selected = line;
    this.#list?.refresh();
    this.#detail.hidden = line === null;
    if (line === null) {
      this.#viewport.removeAttribute("aria-activedescendant");
      return;
    }
    this.#viewport.setAttribute("aria-activedescendant", `trace-line-${line.number}`);
    const advice = TRACE_ADVICE[line.members.why];
    this.#detail.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("h3", { class: "grow" }, line.word.replaceAll("_", " ")),
        el("button", { class: "plain tight", onclick: () => copyText(JSON.stringify(line.members, null, 2)) }, "Copy"),
        el("button", { class: "plain tight", onclick: () => this.#leaveDetail() }, "Close"),
      ),
      advice === undefined ? "" : el("p", { class: "note", "data-tone": "warn" }, advice),
      el("pre", { tabindex: "0", "aria-label": "The line as JSON" }, showMarks(JSON.stringify(line.members, null, 2))),
    );
  }

  #leaveDetail() {
    this.#select(null);
    this.#viewport.focus();
  }

  #copy() {
    copyText(this.#list.rows.map(traceWhole).join("\n"));
  }

  #save() {
    const lines = this.#list.rows.map(({ word, members }) => `${JSON.stringify({ what: word, ...members })}\n`);
    download(`trace-${stampText()}.ndjson`, "application/x-ndjson", lines.join(""));
  }
}

/** Why a look ended, in words. */
function traceEnd(why) {
  return { limit: "so many lines were asked for", drain: "the server is going away" }[why] ?? traceValue(why);
}

/** Builds the view into `root`. */
function startTrace(root) {
  const view = new TraceView(root);
  registerView("trace", { show: (parameters) => view.show(parameters), hide: () => view.hide() });
}
