// The view `#sessions`: the sessions of the process as a table with search and sort, and what can be done to one: kick
// it, or trace it. `#sessions?search=TEXT` begins with a search.
//
// Invariants: no more than SESSIONS_ROWS_MAX rows are kept. If there are more sessions, the server says which come first by
// the chosen column, and the view says that it shows no others. One listing is under way at a time, none while nobody
// sees the view, and the next begins SESSIONS_REST times its length later, within bounds, so that a server that is slow to
// list is asked less often. Whatever a session says of itself is foreign, and shown as text only.

/** Rows that are kept. */
const SESSIONS_ROWS_MAX = 20_000;

/** Sessions asked for at once: the most that the server gives. */
const SESSIONS_PAGE = 1000;

/** From the end of a listing to the next: so many times as long as it took, and at least and at most so many milliseconds. */
const SESSIONS_REST = 5;
const SESSIONS_REST_MIN = 2000;
const SESSIONS_REST_MAX = 10_000;

/** The time without a key pressed after which a search begins, in milliseconds. */
const SESSIONS_SEARCH_WAIT = 150;

/** What a kicked session is told, unless the user says otherwise. */
const SESSIONS_KICK_CODE = 1008;
const SESSIONS_KICK_REASON = "closed by the operator";

/** The columns: how a cell is written, and by what the server sorts, the largest first, if it does. */
const SESSIONS_COLUMNS = [
  { key: "id", title: "Session", write: ({ id }) => id },
  { key: "account_id", title: "Account", write: ({ account_id: account }) => account ?? "–" },
  { key: "name", title: "Name", write: ({ name }) => showMarks(name ?? "–") },
  { key: "bindings", title: "Bindings", write: ({ bindings }) => sessionsBindingsText(bindings), isNumber: true },
  { key: "age_seconds", title: "Age", write: (row) => durationText(row.age_seconds), sort: "age", isNumber: true },
  { key: "idle_seconds", title: "Idle", write: (row) => durationText(row.idle_seconds), sort: "idle", isNumber: true },
  { key: "frames", title: "Frames", write: ({ frames }) => countText(frames), sort: "frames", isNumber: true },
  { key: "bytes", title: "Sent", write: ({ bytes }) => (bytes === null ? "–" : bytesText(bytes)), sort: "bytes", isNumber: true },
  { key: "outbox_bytes", title: "Outbox", write: (row) => bytesText(row.outbox_bytes), sort: "outbox", isNumber: true },
  { key: "dropped", title: "Dropped", write: ({ dropped }) => countText(dropped), sort: "dropped", isNumber: true },
];

/** What is shown of one session alone, too. */
const SESSIONS_FACTS = [
  { title: "TLS", write: ({ tls }) => tls ?? "none" },
  { title: "Compression", write: ({ compression }) => (compression ? "permessage-deflate" : "none") },
];

function sessionsBindingsText(bindings) {
  if (bindings.length === 0) return "none";
  const first = showMarks(bindings[0]);
  return bindings.length === 1 ? first : `${countText(bindings.length)}: ${first} …`;
}

/** The column of this key. */
function sessionsColumn(key) {
  return SESSIONS_COLUMNS.find((column) => column.key === key);
}

/** The rows in another order. What a row does not have comes last; of equal ones, the first is the one whose id is. */
function sessionsSorted(rows, { key, direction }) {
  const sign = direction === "ascending" ? 1 : -1;
  const valueOf = (row) => {
    const value = row[key];
    if (Array.isArray(value)) return value.length;
    return typeof value === "string" ? value.toLowerCase() : value;
  };
  const keyed = rows.map((row) => ({ row, value: valueOf(row) ?? null }));
  keyed.sort((one, other) => {
    if (one.value === other.value) return one.row.id < other.row.id ? -1 : 1;
    if (one.value === null || other.value === null) return one.value === null ? 1 : -1;
    return one.value < other.value ? -sign : sign;
  });
  return keyed.map(({ row }) => row);
}

/** The rows in which every word of the search is found: in the id, the account, the name or the bindings. */
function sessionsFound(rows, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return rows;
  return rows.filter(({ id, account_id: account, name, bindings }) => {
    const text = [id, account, name, ...bindings].filter(Boolean).join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** What the server itself can search for among all of its sessions: an account, an address, a binding; or `{}`. */
function sessionsFilter(search) {
  const text = search.trim();
  if (/^[0-9a-f]{32}$/i.test(text)) return { account: text.toLowerCase() };
  if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text) || /^(?=.*:.*:)[0-9a-f:.]+$/i.test(text)) return { ip: text };
  if (/^[a-z_]+(\.[^\s.]+)+$/i.test(text)) return { binding: text };
  return {};
}

/** A path with its query; members that are `null` or empty are left out. */
function sessionsPath(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== "");
  return given.length === 0 ? path : `${path}?${given.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&")}`;
}

/**
 * Lists sessions by `ask(path)`, which answers with a page of `/v2/sessions`. Returns `{rows, isCut}`. If it is cut, the
 * rows are those that come first by the column `sort`. `wasCut`: it was the last time, so only these are asked for.
 * `take(rows)` is told what there is so far.
 */
async function sessionsListed({ ask, sort, filter, isSlowOnly, wasCut, take }) {
  const query = { ...filter, slow: isSlowOnly ? 1 : null, limit: SESSIONS_PAGE };
  // By its id: a session can come twice if others end meanwhile.
  const rows = new Map();
  for (let start = null; !wasCut; ) {
    const page = await ask(sessionsPath("/v2/sessions", { ...query, start_key: start }));
    for (const row of page.data) rows.set(row.id, row);
    start = page.next_start_key ?? null;
    if (start === null) return { rows: [...rows.values()], isCut: false };
    if (rows.size >= SESSIONS_ROWS_MAX) break;
    take([...rows.values()]);
  }
  const page = await ask(sessionsPath("/v2/sessions", { ...query, sort: sessionsColumn(sort.key).sort ?? "age" }));
  return { rows: page.data, isCut: page.next_start_key !== undefined };
}

/** The view. */
class SessionsView {
  #rows = [];
  #isCut = false;
  #filter = {};
  #sort = { key: "age_seconds", direction: "descending" };
  #search = "";
  #isShown = false;
  #isPaused = false;
  #listing = null;
  #timer = 0;
  #list;
  #table;
  #heads = new Map();
  #empty = emptyState("No session");
  #count = el("p", { class: "grow muted small" }, "Asking");
  #cut = el("p", { class: "note", "data-tone": "warn", hidden: true });
  #searchInput = el("input", {
    type: "search",
    placeholder: "Search: address, account, name, binding",
    "aria-label": "Search sessions",
    spellcheck: "false",
    autocomplete: "off",
  });
  #slowOnly = el("button", { class: "chip", "aria-pressed": "false", onclick: () => this.#toggleSlow() }, "Slow only");
  #pause = el("button", { class: "plain", "aria-pressed": "false", onclick: () => this.#togglePause() }, "Pause");
  #order = el("select", { "aria-label": "Sort by" });

  constructor(root) {
    const find = debounce(SESSIONS_SEARCH_WAIT, () => this.#setSearch(this.#searchInput.value));
    this.#searchInput.addEventListener("input", find);
    for (const { key, title } of SESSIONS_COLUMNS) this.#order.append(el("option", { value: key }, `By ${title.toLowerCase()}`));
    this.#order.addEventListener("change", () => this.#setSort(this.#order.value));
    const viewport = el("div", { class: "window", role: "rowgroup" });
    const space = el("div", { class: "window-space", role: "presentation" });
    viewport.append(space);
    this.#table = el(
      "div",
      { class: "sessions-table", role: "table", "aria-label": "Sessions", "aria-colcount": SESSIONS_COLUMNS.length + 1, hidden: true },
      el("div", { role: "rowgroup" }, this.#headRow()),
      viewport,
    );
    root.append(
      el("h2", { class: "unseen" }, "Sessions"),
      el(
        "div",
        { class: "card stream" },
        el(
          "div",
          { class: "stream-tools" },
          el("div", { class: "find" }, this.#searchInput),
          el("div", { class: "sessions-order" }, this.#order),
          this.#slowOnly,
          this.#pause,
          el("button", { class: "plain", onclick: () => this.#save() }, "Export"),
        ),
        el("div", { class: "sessions-says" }, this.#count, this.#cut),
        this.#empty,
        this.#table,
      ),
    );
    this.#list = new VirtualList({
      viewport,
      space,
      keyOf: ({ id }) => id,
      create: () => this.#createRow(),
      fill: (element, row, at) => this.#fillRow(element, row, at),
    });
    this.#empty.hidden = true;
    this.#tellSort();
  }

  show(parameters) {
    this.#isShown = true;
    const search = parameters.get("search");
    if (search !== null && search !== this.#search) {
      this.#searchInput.value = search;
      this.#setSearch(search);
    }
    this.#list.refresh();
    this.#listOrRest();
  }

  hide() {
    this.#isShown = false;
    this.#listOrRest();
  }

  /** Lists from now on if somebody sees it, else not. */
  #listOrRest() {
    clearTimeout(this.#timer);
    const isWanted = this.#isShown && !this.#isPaused;
    if (!isWanted) this.#listing?.abort();
    else if (this.#listing === null) this.#listAll();
  }

  /** Lists at once, as what is asked for has changed. */
  #listAgain() {
    clearTimeout(this.#timer);
    this.#listing?.abort();
    if (this.#listing === null && this.#isShown) this.#listAll();
  }

  /** One listing, and then the next. */
  async #listAll() {
    const begun = performance.now();
    const listing = new AbortController();
    this.#listing = listing;
    const { signal } = listing;
    const ask = async (path) => (await api(path, { signal, quiet: true })).json();
    const filter = sessionsFilter(this.#search);
    const isFirst = this.#rows.length === 0;
    const take = (rows) => {
      if (!isFirst || signal.aborted) return;
      this.#rows = rows;
      this.#showRows();
    };
    try {
      // Where the server has not told all, it searches; else the page does.
      const question = { ask, sort: this.#sort, isSlowOnly: this.#isSlowOnly(), wasCut: this.#isCut, take };
      const { rows, isCut } = await sessionsListed({ ...question, filter: this.#isCut ? filter : {} });
      if (!signal.aborted) {
        // An answer to a search is not all there is.
        this.#filter = this.#isCut ? filter : {};
        this.#isCut = isCut || Object.keys(this.#filter).length > 0;
        this.#rows = rows;
        this.#showRows();
      }
    } catch (error) {
      if (!signal.aborted) setText(this.#count, `No listing: ${error.message}`);
    }
    this.#listing = null;
    const took = performance.now() - begun;
    const wait = signal.aborted ? 0 : Math.min(Math.max(SESSIONS_REST * took, SESSIONS_REST_MIN), SESSIONS_REST_MAX);
    this.#timer = setTimeout(() => this.#listOrRest(), wait);
  }

  /** Shows what is found of the rows, in order. */
  #showRows() {
    const shown = sessionsSorted(this.#isFoundByServer() ? this.#rows : sessionsFound(this.#rows, this.#search), this.#sort);
    this.#table.hidden = shown.length === 0;
    this.#table.setAttribute("aria-rowcount", shown.length + 1);
    this.#empty.hidden = shown.length > 0;
    this.#list.setRows(shown);
    const all = this.#rows.length;
    const words = shown.length === all ? `${countText(all)} ${all === 1 ? "session" : "sessions"}` : `${countText(shown.length)} of ${countText(all)} sessions`;
    setText(this.#count, words);
    setText(this.#empty.firstElementChild, all === 0 && this.#search === "" ? "No session" : "No session fits");
    this.#cut.hidden = !this.#isCut;
    if (this.#isCut) setText(this.#cut, this.#cutWords());
  }

  /** Whether the rows are the server's answer to this search: it also knows the account of a subscription. */
  #isFoundByServer() {
    const filter = sessionsFilter(this.#search);
    return Object.keys(filter).length > 0 && JSON.stringify(filter) === JSON.stringify(this.#filter);
  }

  #cutWords() {
    const column = sessionsColumn(this.#sort.key);
    const first = column.sort ? `with the largest ${column.title.toLowerCase()}` : "that are oldest";
    const searched = Object.keys(this.#filter).length > 0;
    return searched
      ? `The server searched all of its sessions; of those that fit, at most ${countText(SESSIONS_PAGE)} are shown, those ${first}.`
      : `There are more sessions than this page takes: shown are the ${countText(this.#rows.length)} ${first}. Search for a whole account, address or binding to have the server search all.`;
  }

  #setSearch(search) {
    this.#search = search;
    this.#showRows();
    announce(this.#count.textContent);
    if (this.#isCut) this.#listAgain();
  }

  #isSlowOnly() {
    return this.#slowOnly.getAttribute("aria-pressed") === "true";
  }

  #toggleSlow() {
    this.#slowOnly.setAttribute("aria-pressed", String(!this.#isSlowOnly()));
    this.#isCut = false;
    this.#listAgain();
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    this.#pause.setAttribute("aria-pressed", String(this.#isPaused));
    this.#listOrRest();
  }

  /** Sorts by a column; by the same again: the other way round. */
  #setSort(key) {
    const first = sessionsColumn(key).isNumber ? "descending" : "ascending";
    const other = this.#sort.direction === "ascending" ? "descending" : "ascending";
    this.#sort = { key, direction: this.#sort.key === key ? other : first };
    this.#tellSort();
    this.#showRows();
    announce(`Sorted by ${sessionsColumn(key).title.toLowerCase()}, ${this.#sort.direction}`);
    if (this.#isCut) this.#listAgain();
  }

  #tellSort() {
    const { key, direction } = this.#sort;
    this.#order.value = key;
    for (const [column, head] of this.#heads) {
      if (column === key) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    }
  }

  #headRow() {
    const heads = SESSIONS_COLUMNS.map(({ key, title, isNumber }) => {
      const button = el("button", { class: "plain tight", onclick: () => this.#setSort(key) }, title);
      const head = el("div", { role: "columnheader", class: isNumber ? "number" : null, "data-column": key }, button);
      this.#heads.set(key, head);
      return head;
    });
    heads.push(el("div", { role: "columnheader", "data-column": "actions" }, el("span", { class: "unseen" }, "Actions")));
    return el("div", { role: "row", class: "session head-row", "aria-rowindex": 1 }, ...heads);
  }

  #createRow() {
    const element = el("div", { role: "row", class: "session" });
    for (const { key, title, isNumber } of SESSIONS_COLUMNS) {
      const text = el(key === "id" ? "button" : "bdi", key === "id" ? { class: "plain tight mono" } : {});
      element.append(el("div", { role: "cell", class: isNumber ? "number" : null, "data-column": key, "data-title": title }, text));
    }
    const [id] = element.children;
    id.firstChild.addEventListener("click", () => this.#showOne(element.row));
    element.append(
      el(
        "div",
        { role: "cell", "data-column": "actions" },
        el("button", { class: "tight", onclick: () => traceSession(element.row.id) }, "Trace"),
        el("button", { class: "tight danger", onclick: () => this.#kick(element.row) }, "Kick"),
      ),
    );
    return element;
  }

  #fillRow(element, row, at) {
    element.setAttribute("aria-rowindex", at + 2);
    if (element.row === row) return;
    element.row = row;
    SESSIONS_COLUMNS.forEach(({ write }, column) => setText(element.children[column].firstChild, write(row)));
    element.toggleAttribute("data-slow", row.dropped > 0 || row.outbox_bytes > 0);
    const [trace, kick] = element.lastElementChild.children;
    trace.setAttribute("aria-label", `Trace ${row.id}`);
    kick.setAttribute("aria-label", `Kick ${row.id}`);
  }

  #save() {
    const lines = this.#list.rows.map((row) => `${JSON.stringify(row)}\n`);
    download(`sessions-${stampText()}.ndjson`, "application/x-ndjson", lines.join(""));
  }

  /** Shows all that is known of a session. */
  #showOne(row) {
    const shown = [...SESSIONS_COLUMNS.filter(({ key }) => key !== "bindings"), ...SESSIONS_FACTS];
    const facts = shown.flatMap(({ title, write }) => [
      el("dt", {}, title),
      el("dd", {}, foreign(write(row))),
    ]);
    const dialog = el(
      "dialog",
      { class: "session-dialog", "aria-labelledby": "session-title" },
      el("div", { class: "stack" },
        el("h2", { id: "session-title" }, `Session ${row.id}`),
        el("dl", { class: "session-facts" }, ...facts),
        el("h3", {}, `Bindings (${countText(row.bindings.length)})`),
        el("ul", { class: "session-bindings", tabindex: "0", "aria-label": "Bindings" },
          ...row.bindings.map((binding) => el("li", {}, el("code", {}, showMarks(binding))))),
        el("div", { class: "row end" },
          el("button", { class: "plain", onclick: () => copyText(JSON.stringify(row, null, 2)) }, "Copy"),
          el("button", { onclick: () => dialog.close() }, "Close")),
      ),
    );
    this.#open(dialog);
  }

  /** Asks how a session is to be closed, and closes it. */
  #kick(row) {
    const whom = [
      { words: `This session, ${row.id}`, path: `/v2/sessions/${encodeURIComponent(row.id)}`, query: {} },
      { words: `All sessions from ${row.ip}`, path: "/v2/sessions", query: { ip: row.ip } },
    ];
    if (row.account_id !== null) {
      whom.push({ words: `All sessions of account ${row.account_id}`, path: "/v2/sessions", query: { account: row.account_id } });
    }
    const choices = whom.map(({ words }, at) => {
      const input = el("input", { type: "radio", name: "kick-whom", value: at, checked: at === 0 });
      return el("label", { class: "row" }, input, el("span", { class: "grow" }, words));
    });
    const code = el("input", { type: "number", value: SESSIONS_KICK_CODE, min: 1008, max: 4999, required: true });
    const reason = el("input", { type: "text", value: SESSIONS_KICK_REASON, maxlength: 123, autocomplete: "off" });
    const wrong = el("p", { class: "wrong", role: "alert" });
    const submit = async (submitted) => {
      submitted.preventDefault();
      const { path, query } = whom[Number(new FormData(form).get("kick-whom"))];
      try {
        const asked = sessionsPath(path, { ...query, code: code.value, reason: reason.value });
        const { data } = await (await api(asked, { method: "DELETE" })).json();
        dialog.close();
        toast(`${countText(data.closed)} ${data.closed === 1 ? "session" : "sessions"} kicked`, "good");
        this.#listAgain();
      } catch (error) {
        setText(wrong, error.message);
      }
    };
    const form = el(
      "form",
      { class: "stack", onsubmit: submit },
      el("h2", { id: "kick-title" }, "Kick"),
      el("fieldset", { class: "stack" }, el("legend", {}, "Whom"), ...choices),
      el("label", { class: "field" }, "Close code", code, el("span", { class: "hint" }, "1008, or 4000 to 4999. Clients come back after most of them.")),
      el("label", { class: "field" }, "Reason that the client is told", reason),
      wrong,
      el("div", { class: "row end" },
        el("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel"),
        el("button", { class: "danger" }, "Kick")),
    );
    const dialog = el("dialog", { "aria-labelledby": "kick-title" }, form);
    this.#open(dialog);
  }

  #open(dialog) {
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }
}

/** Builds the view into `root`. */
function startSessions(root) {
  const view = new SessionsView(root);
  registerView("sessions", { show: (parameters) => view.show(parameters), hide: () => view.hide() });
}
