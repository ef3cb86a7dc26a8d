// The view `#sessions`: the sessions of the process as a table with search and sort, and what can be done to one: close
// it (kick), or trace it.
//
// Invariants: no more than SESSIONS_ROWS_MAX rows are kept. Where there are more sessions, the server says which come
// first by the chosen column, and the page says that it shows these only. One listing is under way at a time; the next
// begins no sooner than LISTING_REST times its length later, so that a console never keeps the loop busy. All text of a
// session is foreign, and shown as text only.

/** Rows that are kept. */
export const SESSIONS_ROWS_MAX = 20_000;

/** Sessions asked for at once: the most that the server gives. */
const SESSIONS_PAGE_MAX = 1000;

/** The least time between two listings, and how many times as long as the last listing took. */
const LISTING_INTERVAL_MS = 2000;
const LISTING_REST = 10;

/** Columns by which the server can sort, the largest first. */
const SERVER_SORTS = new Map([
  ["age_seconds", "age"],
  ["idle_seconds", "idle"],
  ["frames", "frames"],
  ["bytes", "bytes"],
  ["outbox_bytes", "outbox"],
  ["dropped", "dropped"],
]);

/** The columns: how a cell is written, and where a first click on its head begins. */
export const SESSION_COLUMNS = [
  { key: "id", title: "Session", first: "ascending", write: ({ id }) => id },
  { key: "account_id", title: "Account", first: "ascending", write: ({ account_id: account }) => account ?? "none" },
  { key: "name", title: "Name", first: "ascending", write: ({ name }) => name ?? "" },
  { key: "age_seconds", title: "Age", first: "descending", write: (row) => durationText(row.age_seconds) },
  { key: "idle_seconds", title: "Idle", first: "descending", write: (row) => durationText(row.idle_seconds) },
  { key: "bindings", title: "Bindings", first: "descending", write: bindingsText },
  { key: "frames", title: "Frames", first: "descending", write: ({ frames }) => countText(frames) },
  { key: "bytes", title: "Bytes", first: "descending", write: ({ bytes }) => bytesText(bytes) },
  { key: "outbox_bytes", title: "Waiting", first: "descending", write: (row) => bytesText(row.outbox_bytes) },
  { key: "dropped", title: "Dropped", first: "descending", write: ({ dropped }) => countText(dropped) },
];

function bindingsText({ bindings }) {
  if (bindings.length === 0) return "none";
  return bindings.length === 1 ? bindings[0] : `${countText(bindings.length)}: ${bindings[0]} …`;
}

/** By what a column is sorted. */
function sortValue(row, key) {
  const value = row[key];
  if (Array.isArray(value)) return value.length;
  return typeof value === "string" ? value.toLowerCase() : value;
}

/** The rows in another order; what a row does not have comes last, equal ones keep the order of their ids. */
export function sortSessions(rows, { key, direction }) {
  const sign = direction === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => ({ row, value: sortValue(row, key) }));
  keyed.sort((one, other) => {
    if (one.value !== other.value) {
      if (one.value === null) return 1;
      if (other.value === null) return -1;
      return one.value < other.value ? -sign : sign;
    }
    return one.row.id < other.row.id ? -1 : 1;
  });
  return keyed.map(({ row }) => row);
}

/** All that a search looks at in a row. */
export function sessionHaystack({ id, account_id: account, name, bindings }) {
  return [id, account, name, ...bindings].filter(Boolean).join("\n").toLowerCase();
}

/** What of a search the server can look for itself, among all its sessions: an account, an address, a binding. */
export function serverFilterOf(search) {
  const text = search.trim();
  if (/^[0-9a-f]{32}$/i.test(text)) return { account: text.toLowerCase() };
  if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text) || /^[0-9a-f]*:[0-9a-f:.]*:[0-9a-f:.]*$/i.test(text)) return { ip: text };
  if (/^[a-z_]+(\.[^\s.]+)+$/i.test(text)) return { binding: text };
  return null;
}

/** The path of a listing's page. Members that are `null` or empty are left out. */
export function pathOf(base, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const pairs = given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
  return pairs.length === 0 ? base : `${base}?${pairs.join("&")}`;
}

/**
 * Lists sessions. `ask(path)` answers a page of `GET /v2/sessions`. Returns `{rows, isCut}`; if it is cut, the rows are
 * those that come first by the chosen column. `wasCut`: so it was the last time.
 */
export async function listSessions({ ask, sort, filter, isSlowOnly, wasCut }) {
  const query = { ...filter, slow: isSlowOnly ? "1" : null, limit: SESSIONS_PAGE_MAX };
  const byServer = { ...query, sort: SERVER_SORTS.get(sort.key) ?? "age" };
  if (wasCut) {
    const page = await ask(pathOf("/v2/sessions", byServer));
    return { rows: page.data, isCut: "next_start_key" in page };
  }
  // By id: a session may come twice when others end meanwhile.
  const rows = new Map();
  for (let start = null; ; ) {
    const page = await ask(pathOf("/v2/sessions", { ...query, start_key: start }));
    for (const row of page.data) rows.set(row.id, row);
    start = page.next_start_key ?? null;
    if (start === null) return { rows: [...rows.values()], isCut: false };
    if (rows.size >= SESSIONS_ROWS_MAX) {
      return listSessions({ ask, sort, filter, isSlowOnly, wasCut: true });
    }
  }
}

/** Builds the view inside `root`. */
export function startSessions(root) {
  registerView("sessions", { show() {}, hide() {} });
}
