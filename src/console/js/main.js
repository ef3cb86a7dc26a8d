// The views as tabs, the state of the server in the header, and the start of everything.
//
// The view that is seen is told by the address: `#sessions`, `#trace?session=IP:PORT`. So a view can be linked to, the
// browser's back button works, and a view hands another what to show (`openView`). `#account=…&binding=…` is the view of
// events. No token is ever in it, and nothing is done by itself because of what it says.

/** How often the server is asked how it stands, in milliseconds. */
const STATUS_INTERVAL_MS = 5000;

/** How long an answer may take. */
const STATUS_PATIENCE_MS = 10_000;

/** A view that is not told from the address is this one. */
const FIRST_VIEW = "events";

/** What views there are: `show(parameters)` when one comes into sight or gets other parameters, `hide()` when it goes. */
const views = new Map();

/** The name of the view that is seen, as it was told last; `null`: the page is not seen, or nothing was told yet. */
let viewShown = null;

/** Takes a view in. Before the page's start is over. */
function registerView(name, { show, hide }) {
  views.set(name, { show, hide });
}

/** Goes to a view. `parameters`: what it is to show. */
function openView(name, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  // Not by `location.hash`: the browser would go to the element of that id, and take the focus from the tab.
  history.pushState(null, "", query === "" ? `#${name}` : `#${name}?${query}`);
  followAddress();
}

/** The view and the parameters that the address tells. */
function viewAsked() {
  const [name, query] = location.hash.slice(1).split("?", 2);
  if (views.has(name)) return [name, new URLSearchParams(query ?? "")];
  return [FIRST_VIEW, new URLSearchParams(name)];
}

function followAddress() {
  const [name, parameters] = viewAsked();
  for (const tab of document.querySelectorAll(".tabs [role=tab]")) {
    const isShown = tab.dataset.view === name;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    byId(tab.dataset.view).hidden = !isShown;
  }
  const isSeen = document.visibilityState === "visible";
  if (viewShown !== null && !(isSeen && viewShown === name)) views.get(viewShown).hide();
  viewShown = isSeen ? name : null;
  if (isSeen) views.get(name).show(parameters);
}

/** The keys of the ARIA pattern for tabs. */
function onTabKey(event) {
  const tabs = [...document.querySelectorAll(".tabs [role=tab]")];
  const at = tabs.indexOf(document.activeElement);
  const next = {
    ArrowRight: (at + 1) % tabs.length,
    ArrowLeft: (at + tabs.length - 1) % tabs.length,
    Home: 0,
    End: tabs.length - 1,
  }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  tabs[next].focus();
  openView(tabs[next].dataset.view);
}

/** Those who are told each answer of `/v2/status`. */
const statusListeners = [];

/** Has `listener` called with each answer of `/v2/status`. */
function onStatus(listener) {
  statusListeners.push(listener);
}

async function askStatus() {
  try {
    const { data } = await (await api("/v2/status", { quiet: true, patienceMs: STATUS_PATIENCE_MS })).json();
    sayServer(serverState(data));
    byId("node").textContent = data.node;
    for (const listener of statusListeners) listener(data);
  } catch (error) {
    sayServer(error.status === 401 ? ["warn", "Admin token needed"] : ["bad", error instanceof ApiError ? error.message : "The server does not answer"]);
  }
  setTimeout(askStatus, STATUS_INTERVAL_MS);
}

/** How the server stands, as a tone and words. */
function serverState(status) {
  if (status.draining) return ["warn", "Draining: about to end"];
  if (status.source.state === "starting") return ["warn", "No event source yet"];
  if (status.source.state === "away") return ["bad", "Event source away"];
  if (status.source.permissions_missing.length > 0) return ["warn", "Permissions missing"];
  return ["good", "Server ready"];
}

function sayServer([tone, words]) {
  const pill = byId("server-state");
  if (byId("server-word").textContent === words && pill.dataset.tone === tone) return;
  pill.dataset.tone = tone;
  byId("server-word").textContent = words;
  announce(words);
}

startEvents(byId("events"));
startServer(byId("server"));
startSessions(byId("sessions"));
startTrace(byId("trace"));
for (const tab of document.querySelectorAll(".tabs [role=tab]")) {
  tab.addEventListener("click", () => openView(tab.dataset.view));
}
document.querySelector(".tabs").addEventListener("keydown", onTabKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  // Not by the address, which tells the view.
  event.preventDefault();
  byId("main").focus();
});
window.addEventListener("popstate", followAddress);
document.addEventListener("visibilitychange", followAddress);
followAddress();
askStatus();
