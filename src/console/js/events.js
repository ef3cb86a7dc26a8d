// The view `#events`: what comes over the websocket, newest first.
//
// Invariants: at most EVENTS_MAX entries and EVENT_CHARACTERS_MAX characters of them are kept, the oldest go first, and how
// many went is told. However many come, the list is drawn once a frame, and only the rows that are seen. While it is paused
// what comes is kept aside under the same bounds. Of an entry only its text is kept; it is read again when it is shown.

/** Entries that are kept. */
export const EVENTS_MAX = 10_000;

/** Characters of all of them; two bytes each, at most. */
export const EVENT_CHARACTERS_MAX = 32 << 20;

/** Characters of one entry that are shown; the whole can be copied and saved. */
const DETAIL_CHARACTERS_MAX = 400_000;

/** Characters beyond which JSON is shown without colours. */
const COLOURED_CHARACTERS_MAX = 60_000;

/** Bindings that the address can fill in. */
const EVENTS_BINDINGS_MAX = 50;

/** The seconds over which a rate is taken. */
const RATE_SECONDS = 5;

/** What was published with an event, in either style. */
function bodyOf(frame) {
  const body = frame.args ?? frame.data;
  return typeof body === "object" && body !== null ? body : {};
}

/** What an event is about, in few words: who calls whom, which document; else where it was published to. */
export function aboutEvent(frame) {
  const body = bodyOf(frame);
  const first = (...names) => {
    for (const name of names) {
      const value = body[name] ?? body[name.toLowerCase().replaceAll("-", "_")];
      if (typeof value === "string" && value !== "") return value.slice(0, 80);
    }
    return "";
  };
  const from = first("Caller-ID-Name", "Caller-ID-Number", "From-User", "From");
  const to = first("Callee-ID-Number", "To-User", "To", "Request");
  const key = String(frame.routing_key ?? "");
  if (from !== "" || to !== "") return `${from || "?"} → ${to || "?"}`;
  const document = [first("Type"), first("ID")].filter(Boolean).join(" ");
  return document === "" ? key : document;
}

/** An entry of the list from a frame of the server or of the page's own. `at`: Unix milliseconds. */
export function entryOf(number, kind, frame, at) {
  const text = JSON.stringify(frame);
  const entry = { number, kind, at, text, name: "", about: "" };
  if (kind === "event") {
    entry.name = String(frame.name);
    entry.about = aboutEvent(frame);
  } else if (kind === "notice") {
    entry.name = String(frame.name);
    entry.about = noticeWords(frame);
  } else if (kind === "state") {
    entry.name = frame.state;
    entry.about = frame.why ?? "";
  } else {
    const { errors, response, unsubscribed, subscribed } = frame.data ?? {};
    entry.name = errors ? "error" : response ? String(response) : unsubscribed ? "unsubscribed" : "subscribed";
    entry.about = (errors ?? (unsubscribed ? unsubscribed : subscribed) ?? []).join(", ");
  }
  entry.name = showMarks(entry.name).slice(0, 120);
  entry.about = showMarks(entry.about).slice(0, 200);
  return entry;
}

function noticeWords({ name, data }) {
  const about = data ?? {};
  if (name === "gap") return gapWords(about);
  if (name === "resumed") return resumedWords({ events: Number(about.events) || 0, doubles: 0 });
  if (name === "going_away") return `The server is about to end; it closes no session for ${durationText((Number(about.within_ms) || 0) / 1000)}.`;
  if (name === "subscriptions_ended") return `${about.reason}: ${[about.bindings].flat().join(", ")}`;
  return JSON.stringify(about);
}

/** What is kept. Newest first; `takes` says which kinds and words are shown. */
export class EventLog {
  #entries = [];
  #shown = [];
  #held = [];
  #characters = 0;
  #number = 0;
  #kinds = new Set();
  #words = [];
  isPaused = false;
  /** Entries that were let go. */
  dropped = 0;

  /** Those that are to be shown, the newest first. */
  get shown() {
    return this.#shown;
  }

  get kept() {
    return this.#entries.length;
  }

  /** Those that wait because the list is paused. */
  get held() {
    return this.#held.length;
  }

  #takes(entry) {
    if (this.#kinds.size > 0 && !this.#kinds.has(entry.kind)) return false;
    return this.#words.every((word) => word.test(entry.name) || word.test(entry.about) || word.test(entry.text));
  }

  /** Shows only these kinds (none: all), with all of these words in them. Linear in all that is kept. */
  filter(kinds, text) {
    this.#kinds = new Set(kinds);
    const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    this.#words = text.split(/\s+/).filter(Boolean).map((word) => new RegExp(escaped(word), "i"));
    this.#shown = this.#entries.filter((entry) => this.#takes(entry));
  }

  get isFiltered() {
    return this.#kinds.size > 0 || this.#words.length > 0;
  }

  /** Takes frames in, `[kind, frame, at]`, the oldest first. */
  add(frames) {
    const entries = frames.map(([kind, frame, at]) => entryOf((this.#number += 1), kind, frame, at)).reverse();
    for (const { text } of entries) this.#characters += text.length;
    if (this.isPaused) {
      this.#held = entries.concat(this.#held);
    } else {
      this.#show(entries);
    }
    this.#bound();
  }

  #show(entries) {
    this.#entries = entries.concat(this.#entries);
    const fitting = this.isFiltered ? entries.filter((entry) => this.#takes(entry)) : entries;
    this.#shown = fitting.concat(this.#shown);
  }

  #bound() {
    let total = this.#entries.length + this.#held.length;
    while (total > 0 && (total > EVENTS_MAX || this.#characters > EVENT_CHARACTERS_MAX)) {
      const oldest = this.#entries.pop() ?? this.#held.pop();
      if (this.#shown.at(-1) === oldest) this.#shown.pop();
      this.#characters -= oldest.text.length;
      this.dropped += 1;
      total -= 1;
    }
  }

  /** Shows what was held. */
  resume() {
    this.isPaused = false;
    this.#show(this.#held);
    this.#held = [];
  }

  clear() {
    this.#entries = [];
    this.#shown = [];
    this.#held = [];
    this.#characters = 0;
    this.dropped = 0;
  }
}

/** JSON on many lines, its hidden marks shown, and as elements: names, texts, numbers and words in colours of their own. */
export function jsonNodes(text) {
  let pretty = text;
  try {
    pretty = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // It is shown as it is.
  }
  pretty = pretty.replace(HIDDEN_MARKS, (mark) => (mark === "\n" ? mark : showMarks(mark)));
  if (pretty.length > DETAIL_CHARACTERS_MAX) {
    const rest = pretty.length - DETAIL_CHARACTERS_MAX;
    return [pretty.slice(0, DETAIL_CHARACTERS_MAX), `\n… and ${countText(rest)} more characters; Copy and Save have them all.`];
  }
  if (pretty.length > COLOURED_CHARACTERS_MAX) return [pretty];
  const nodes = [];
  const token = /("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d[\d.eE+-]*)|\b(true|false|null)\b/g;
  let from = 0;
  for (const match of pretty.matchAll(token)) {
    const [whole, quoted, colon, number] = match;
    if (match.index > from) nodes.push(pretty.slice(from, match.index));
    from = match.index + whole.length;
    if (quoted === undefined) nodes.push(el("span", { class: number === undefined ? "json-word" : "json-number" }, whole));
    else nodes.push(el("span", { class: colon === undefined ? "json-string" : "json-key" }, quoted), colon ?? "");
  }
  nodes.push(pretty.slice(from));
  return nodes;
}

const EVENT_KINDS = [
  ["event", "Events"],
  ["reply", "Replies"],
  ["notice", "Notices"],
  ["error", "Errors"],
];

/** Builds the view inside `root`. */
export function startEvents(root) {
  const connection = new Connection();
  const connectCard = el("section", { class: "card", "aria-label": "Connection" });
  const bindingsCard = el("section", { class: "card", "aria-label": "Bindings" });
  const stream = el("section", { class: "card stream", "aria-label": "What has come" });
  root.append(el("div", { class: "side" }, connectCard, bindingsCard), stream);
  const form = startConnect(connectCard, connection);
  const bindings = startBindings(bindingsCard, connection);
  const { prefilled } = startStream(stream, connection, bindings, form);

  let followed = "";
  registerView("events", {
    show(parameters) {
      // Once: the page comes into sight again and again, and what the user has changed since is not to be undone.
      const asked = parameters.toString();
      if (asked === followed) {
        bindings.wantFirst();
        prefilled();
        return;
      }
      followed = asked;
      form.prefill(parameters);
      for (const binding of parameters.getAll("binding").slice(0, EVENTS_BINDINGS_MAX)) bindings.want(binding.slice(0, 1024));
      bindings.wantFirst();
      prefilled();
    },
    hide() {},
  });
}

/** Builds the list inside `root`. */
function startStream(root, connection, bindings, form) {
  const log = new EventLog();
  const arrived = [];
  /** Events by the second in which they came. */
  const rates = new Map();
  const kinds = new Set();
  let selected = null;
  let dropTold = 0;
  let isFirstLive = false;
  let stateTold = "none";
  let hasEvents = false;

  const find = el("input", { type: "search", placeholder: "Filter: words, ids, numbers …", "aria-label": "Filter", autocomplete: "off", spellcheck: "false" });
  const pause = el("button", { type: "button", "aria-pressed": "false", onclick: () => setPaused(!log.isPaused) }, "Pause");
  const kindButtons = EVENT_KINDS.map(([kind, words]) =>
    el("button", { class: "chip", type: "button", "aria-pressed": "false", onclick: (event) => toggleKind(kind, event.currentTarget) }, words),
  );
  const clear = el("button", { class: "plain", type: "button", onclick: () => clearAll() }, "Clear");
  const save = el("button", { class: "plain", type: "button", onclick: () => saveShown() }, icon("M10 3v9m-4-4l4 4 4-4M3 16h14"), "Save");
  const viewport = el("div", { class: "window", id: "event-list", role: "listbox", tabindex: "0", "aria-label": "Events, the newest first" });
  const space = el("div", { class: "window-space", role: "presentation" });
  viewport.append(space);
  const empty = el("div", { class: "grow" });
  const waitingWords = el("span", { class: "grow" });
  const waitingTrace = el("button", { class: "tight", type: "button", onclick: () => traceAccount() }, "Trace this account");
  const waiting = el("div", { class: "note waiting" }, waitingWords, waitingTrace);
  const foot = el("div", { class: "stream-foot" });
  const detail = el("aside", { class: "detail", "aria-label": "The chosen entry" });
  detail.hidden = true;
  root.append(
    el(
      "div",
      { class: "stream-tools" },
      el("span", { class: "find" }, find),
      el("div", { class: "chips", role: "group", "aria-label": "Show only" }, kindButtons),
      el("div", { class: "row" }, pause, clear, save),
    ),
    el("div", { class: "stream-body" }, el("div", { class: "stream-list" }, viewport, empty, waiting), detail),
    foot,
  );

  const list = new VirtualList({
    viewport,
    space,
    keyOf: (entry) => entry.number,
    create: () =>
      el("div", { class: "event", role: "option" }, el("span", { class: "at" }), el("span", { class: "tag" }), el("bdi", { class: "name" }), el("bdi", { class: "about" })),
    fill(row, entry, index) {
      const [at, tag, name, about] = row.children;
      row.id = `event-${entry.number}`;
      row.dataset.number = String(entry.number);
      row.setAttribute("aria-selected", String(entry === selected));
      row.setAttribute("aria-setsize", String(log.shown.length));
      row.setAttribute("aria-posinset", String(index + 1));
      setText(at, timeText(entry.at));
      tag.dataset.kind = entry.kind;
      setText(tag, entry.kind);
      setText(name, entry.name);
      setText(about, entry.about);
    },
  });

  const draw = perFrame(() => {
    if (arrived.length > 0) log.add(arrived.splice(0));
    list.setRows(log.shown);
    const hasRows = log.shown.length > 0;
    if (viewport.hidden === hasRows) viewport.hidden = !hasRows;
    empty.hidden = hasRows;
    if (!hasRows) drawEmpty();
    drawWaiting();
    drawFoot();
    setText(pause, log.isPaused ? (log.held > 0 ? `Go on (${countText(log.held)} new)` : "Go on") : "Pause");
  });

  function take(kind, frame) {
    const at = Date.now();
    // A tab that is not seen draws nothing: what comes is bounded here as well.
    arrived.push([kind, frame, at]);
    if (arrived.length >= EVENTS_MAX / 10) log.add(arrived.splice(0));
    if (kind === "event") noteTime(at);
    draw();
  }

  connection.listen((happened, value) => {
    switch (happened) {
      case "event":
        hasEvents = true;
        return take("event", value);
      case "notice":
        return take("notice", value);
      case "reply":
        if (value.data?.response === "pong") return undefined;
        return take(value.status === "error" ? "error" : "reply", value);
      case "gap":
        // The others came as notices already.
        if (value.reason === "reconnect" || (value.reason === "resume" && value.why === undefined)) take("notice", { name: "gap", data: { ...value } });
        return undefined;
      case "error":
        return take("error", { data: { errors: [value.message, ...value.errors] } });
      case "state":
        if (value.name === "none") {
          stateTold = value.name;
          return draw();
        }
        // Once, however often it is tried.
        if (value.name !== stateTold) take("state", { state: connectionWords({ ...value, inMs: 0 })[1], why: value.why });
        stateTold = value.name;
        return value.name === "live" ? comeIntoSight() : undefined;
      case "opened":
        isFirstLive = true;
        hasEvents = false;
        return undefined;
      default:
        return undefined;
    }
  });

  /** On a phone the list lies below the form: at the first event of a connection it is what one wants to see. */
  function comeIntoSight() {
    draw();
    if (isFirstLive && matchMedia("(max-width: 860px)").matches) root.scrollIntoView();
    isFirstLive = false;
  }

  function setPaused(isPaused) {
    if (isPaused) log.isPaused = true;
    else log.resume();
    pause.setAttribute("aria-pressed", String(isPaused));
    announce(isPaused ? "Paused: the list stands still" : "The list goes on");
    draw();
  }

  function toggleKind(kind, button) {
    if (!kinds.delete(kind)) kinds.add(kind);
    button.setAttribute("aria-pressed", String(kinds.has(kind)));
    applyFilter();
  }

  function applyFilter() {
    log.filter(kinds, find.value);
    viewport.scrollTop = 0;
    if (log.isFiltered) announce(`${countText(log.shown.length)} entries fit the filter`);
    draw();
  }
  find.addEventListener("input", debounce(120, applyFilter));

  function clearFilter() {
    find.value = "";
    kinds.clear();
    for (const button of kindButtons) button.setAttribute("aria-pressed", "false");
    applyFilter();
  }

  function clearAll() {
    arrived.length = 0;
    log.clear();
    choose(null);
    draw();
  }

  function saveShown() {
    if (log.shown.length === 0) return toast("There is nothing to save yet");
    const lines = [];
    for (let at = log.shown.length - 1; at >= 0; at -= 1) lines.push(log.shown[at].text, "\n");
    download(`blackhole-${stampText()}.jsonl`, "application/x-ndjson", lines);
    return toast(`${countText(log.shown.length)} entries saved, a JSON object a line`, "good");
  }

  // Choosing an entry.

  function choose(entry) {
    selected = entry;
    detail.hidden = entry === null;
    if (entry === null) viewport.removeAttribute("aria-activedescendant");
    else {
      drawDetail(entry);
      list.show(log.shown.indexOf(entry));
      viewport.setAttribute("aria-activedescendant", `event-${entry.number}`);
    }
    list.refresh();
  }

  function drawDetail(entry) {
    const frame = JSON.parse(entry.text);
    const body = bodyOf(frame);
    const account = body["Account-ID"] ?? body["Custom-Channel-Vars"]?.["Account-ID"] ?? body.account_id;
    const facts = [
      ["Time", `${new Date(entry.at).toLocaleDateString()} ${timeText(entry.at)}`],
      ["Routing key", frame.routing_key],
      ["Binding", frame.subscribed_key],
      ["Account", account],
      ["Cursor", frame.cursor],
      ["Sent again", frame.replayed ? "yes: it was missed, and came with the resume" : undefined],
      ["Size", `${countText(entry.text.length)} characters`],
    ].filter(([, value]) => typeof value === "string" && value !== "");
    const pretty = () => JSON.stringify(frame, null, 2);
    detail.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("span", { class: "tag", "data-kind": entry.kind }, entry.kind),
        el("h3", { class: "grow" }, foreign(entry.name)),
        el("button", { class: "tight", type: "button", onclick: () => copyText(pretty(), "JSON copied") }, "Copy"),
        el("button", { class: "tight", type: "button", onclick: () => download(`${entry.kind}-${entry.number}.json`, "application/json", pretty()) }, "Save"),
        el("button", { class: "plain icon tight", type: "button", "aria-label": "Close", onclick: () => (choose(null), viewport.focus()) }, icon("M5 5l10 10M15 5L5 15")),
      ),
      el("dl", { class: "facts" }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, foreign(showMarks(value).slice(0, 1000)))])),
      el("pre", { tabindex: "0", role: "region", "aria-label": "JSON", dir: "ltr" }, ...jsonNodes(entry.text)),
    );
  }

  space.addEventListener("click", (event) => {
    const number = Number(event.target.closest(".event")?.dataset.number);
    const entry = log.shown.find((one) => one.number === number);
    if (entry !== undefined) choose(entry === selected ? null : entry);
  });

  viewport.addEventListener("keydown", (event) => {
    const at = selected === null ? -1 : log.shown.indexOf(selected);
    const page = Math.max(1, Math.floor(viewport.clientHeight / 40) - 1);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: log.shown.length - 1 }[event.key];
    if (event.key === "Escape" && selected !== null) choose(null);
    else if (event.key === "Enter" && selected !== null) detail.querySelector("button").focus();
    else if (next !== undefined && log.shown.length > 0) choose(log.shown[Math.min(log.shown.length - 1, Math.max(0, next))]);
    else return;
    event.preventDefault();
  });
  detail.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    choose(null);
    viewport.focus();
  });

  // What is said while there is nothing to show, and below the list.

  let emptyShown = "";
  function drawEmpty() {
    const { name } = connection.state;
    const wantedCount = bindings.wanted.size;
    const key = [log.kept > 0, name, wantedCount > 0, log.isPaused].join();
    if (key === emptyShown) return;
    emptyShown = key;
    empty.replaceChildren(emptyNow(name, wantedCount));
  }

  function emptyNow(name, wantedCount) {
    if (log.kept > 0) {
      return emptyState("Nothing fits the filter", el("button", { type: "button", onclick: () => clearFilter() }, "Show all"));
    }
    if (log.isPaused) return emptyState("Paused", el("p", {}, "What comes is kept until you go on."));
    if (name === "none" || name === "closed" || name === "refused") {
      return emptyState(
        name === "refused" ? "The server refused the connection" : "See what happens on the platform, as it happens",
        el("p", {}, name === "refused" ? "Why is said beside the form." : "Calls, documents, faxes, presence: each event appears here the moment the server pushes it."),
        el(
          "ol",
          {},
          el("li", {}, "Say where the server is, and give a token that it takes. Most is filled in already."),
          el("li", {}, wantedCount > 0 ? "Choose bindings: what you want to see. A first one is there." : "Choose bindings: what you want to see. “All calls” is a good start."),
          el("li", {}, "Connect."),
        ),
        el("button", { class: "main", type: "button", onclick: () => form.press() }, "Connect"),
      );
    }
    if (name !== "live") return emptyState("One moment", el("p", {}, "Events appear here once the connection is live."));
    return emptyState("Live", el("p", {}, "What comes from now on appears here."));
  }

  function noteTime(at) {
    const second = Math.floor(at / 1000);
    rates.set(second, (rates.get(second) ?? 0) + 1);
    forgetOldRates(second);
  }

  function forgetOldRates(second) {
    for (const old of rates.keys()) if (old < second - RATE_SECONDS) rates.delete(old);
  }

  /** Events a second, over the last whole seconds. */
  function rateNow() {
    const second = Math.floor(Date.now() / 1000);
    forgetOldRates(second);
    let sum = 0;
    for (const [at, count] of rates) if (at < second) sum += count;
    return sum / RATE_SECONDS;
  }

  /** Says why nothing comes, while nothing does. */
  function drawWaiting() {
    const isWaiting = connection.state.name === "live" && !hasEvents && !log.isPaused;
    if (waiting.hidden === isWaiting) waiting.hidden = !isWaiting;
    if (!isWaiting) return;
    const isAsking = bindings.wanted.size > 0;
    setText(
      waitingWords,
      isAsking
        ? "Live: waiting for the first event. Nothing that fits your bindings has been published yet. The trace tells of each event why it came or did not."
        : "Live, but nothing is asked for. Choose a binding: “All calls” is a good start.",
    );
    waitingTrace.hidden = !isAsking;
  }

  function traceAccount() {
    const { account } = connection;
    openView("trace", account === undefined || account === "*" ? {} : { account });
  }

  function drawFoot() {
    const words = [`${rateNow().toFixed(1)} events/s`];
    words.push(log.isFiltered ? `${countText(log.shown.length)} of ${countText(log.kept)} shown` : `${countText(log.kept)} kept`);
    if (log.dropped > 0) words.push(`${countText(log.dropped)} older ones let go`);
    if (foot.children.length !== words.length) foot.replaceChildren(...words.map(() => el("span")));
    words.forEach((text, at) => setText(foot.children[at], text));
    if (log.dropped > 0 && dropTold === 0) announce("The list is full: the oldest entries are let go");
    dropTold = log.dropped;
  }
  setInterval(() => {
    if (rates.size > 0) draw();
  }, 1000);
  draw();
  return { prefilled: draw };
}
