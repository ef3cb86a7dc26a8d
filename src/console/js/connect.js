// The form of the connection, the client that it makes, and where that stands, in words.
//
// Invariants: the token is in the field and in the client, and nowhere else; nothing connects before the button is pressed.
// There is one client at a time, and what an old one still tells is not heard.

/** How long a word about a gap or a resume stays. */
const CONNECTION_NEWS_MS = 20_000;

/** The connection: what was made of the form, and those who are told what happens to it. */
export class Connection {
  #client = null;
  #listeners = [];
  /** The account that was given; undefined: the token's own. */
  account = undefined;

  /** The client, while there is one; it may be reconnecting. */
  get client() {
    return this.#client;
  }

  /** Where it stands, as `State` of the client's types; `none`: there was never a connection, or it was ended here. */
  get state() {
    return this.#client?.state ?? { name: "none" };
  }

  /** Has `listener(what, ...values)` called with all that the client tells, and with `opened` and `left`. */
  listen(listener) {
    this.#listeners.push(listener);
  }

  #tell(what, ...values) {
    for (const listener of this.#listeners) listener(what, ...values);
  }

  /** Connects anew. Throws for what cannot be an address or an option. */
  open(url, { token, account, style }) {
    this.leave();
    const options = { token, name: "console" };
    if (account !== "") options.account = account;
    if (style !== "") options.style = style;
    const client = connect(url, options);
    this.#client = client;
    this.account = options.account;
    for (const what of ["state", "event", "gap", "resumed", "ended", "notice", "reply", "error"]) {
      client.on(what, (...values) => {
        if (this.#client === client) this.#tell(what, ...values);
      });
    }
    this.#tell("opened", client);
    this.#tell("state", client.state);
  }

  /** Ends the connection, if there is one. */
  leave() {
    const client = this.#client;
    if (client === null) return;
    this.#client = null;
    void client.close();
    this.#tell("left");
    this.#tell("state", this.state);
  }
}

/** A state of the client as a tone and words. */
export function connectionWords(state) {
  switch (state.name) {
    case "none":
    case "closed":
      return ["quiet", "Not connected"];
    case "connecting":
      return ["busy", "Connecting"];
    case "resuming":
      return ["busy", "Back again: what was missed is coming"];
    case "live":
      return ["good", "Live"];
    case "reconnecting":
      return ["warn", state.inMs > 0 ? `Reconnecting in ${durationText(Math.ceil(state.inMs / 1000))}` : "Reconnecting"];
    case "refused":
      return ["bad", "Refused"];
    default:
      return ["quiet", state.name];
  }
}

/** A loss as a sentence. */
export function gapWords(gap) {
  const lost = "Events were lost, or may have been";
  switch (gap.reason) {
    case "slow_consumer":
      return `${lost}: the server dropped ${countText(gap.dropped ?? 0)}, because this page read too slowly.`;
    case "event_source":
      return `${lost}: the server had no broker for ${durationText(gap.seconds ?? 0)}.`;
    case "reconnect":
      return `${lost}: the connection was away, and the server keeps no history.`;
    case "resume":
      return `${lost} while the connection was away: ${gapWhy(gap.why)}.`;
    default:
      return `${lost} (${gap.reason}).`;
  }
}

function gapWhy(why) {
  const words = {
    expired: "that is longer ago than the server remembers",
    unknown: "the server does not know that time, or those bindings, because it is another process or a new one",
    too_many: "there are more than it sends again",
    outage: "its broker was away then",
    invalid: "the server does not know such a place",
  };
  return Object.hasOwn(words, why) ? words[why] : String(why ?? "the server does not say why");
}

/** What came of a resume as a sentence. */
export function resumedWords({ events, doubles }) {
  if (events === 0) return "Resumed: nothing was missed.";
  const again = doubles > 0 ? `; ${countText(doubles)} of them had come before and ${doubles === 1 ? "was" : "were"} left out` : "";
  return `Resumed: ${countText(events)} ${events === 1 ? "event that was missed has" : "events that were missed have"} come${again}.`;
}

/**
 * Where the websockets of a server are, as this page reaches them: from the answer of `/v2/status`. A page that came by
 * https may use `wss` only: the server's own port with TLS, or else a proxy's before the port without. Another page takes
 * the port without TLS if it is open.
 */
export function websocketAddress({ address, port, tls }, page) {
  const isSecure = page.protocol === "https:";
  const own = tls && (isSecure || !port) ? { ...tls, scheme: "wss" } : { address, port, scheme: isSecure ? "wss" : "ws" };
  if (!own.port) return "";
  const isAll = own.address === "0.0.0.0" || own.address === "::";
  const host = isAll ? page.hostname : own.address.includes(":") ? `[${own.address}]` : own.address;
  return `${own.scheme}://${host}:${own.port}`;
}

/** Why a browser may not get through, though it does not say so itself; `null`: nothing is known. */
export function connectionHint(url, status, page) {
  if (page.protocol === "https:" && url.startsWith("ws:")) {
    return "This page came by https, so the browser lets it use wss:// addresses only.";
  }
  const origins = status?.websocket.allowed_origins ?? [];
  if (origins.length > 0 && !origins.includes(page.origin)) {
    return `The server takes websockets of certain pages only, and this one is not among them. Add ${page.origin} to its allowed_origins.`;
  }
  if (status?.draining) return "The server is about to end and takes no more connections.";
  if (url.startsWith("wss:") && status?.websocket.tls) {
    return `The browser takes only a certificate that is for the host in the address, and from an authority that it trusts. Open ${url.replace("wss:", "https:")} in a tab to see what it says.`;
  }
  return null;
}

/** A field: its label, and a hint that is no part of its name. */
function field(label, input, hint = null) {
  input.id = `field-${input.name}`;
  return el("div", { class: "field" }, el("label", { for: input.id }, label), input, hint);
}

/** What is to be said of the token, from the kinds of `auth`. */
function tokenHint(kinds) {
  if (kinds.includes("insecure")) return "This server takes any token, for any account. It is for development only.";
  const words = { tokens: "one of its tokens file", jwt: "a JWT of the platform", crossbar: "a token that the platform's API takes" };
  const known = kinds.filter((kind) => Object.hasOwn(words, kind)).map((kind) => words[kind]);
  return known.length > 0 ? `This server takes ${known.join(", or ")}.` : "";
}

/** Builds the card of the connection inside `root`. Returns what fills it in: `prefill(parameters)`. */
export function startConnect(root, connection) {
  const address = el("input", { class: "mono", name: "address", type: "url", placeholder: "ws://HOST:5555", autocomplete: "off", spellcheck: "false", required: true });
  const account = el("input", { class: "mono", name: "account", placeholder: "the token's own", autocomplete: "off", spellcheck: "false", pattern: "\\*|[0-9a-fA-F]{32}", title: "32 hex digits, or * for all accounts", "aria-describedby": "account-hint" });
  const token = el("input", { class: "mono", name: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-hint" });
  const style = el("select", { name: "style" }, el("option", { value: "" }, "as the server is set"), el("option", { value: "piston" }, "piston: args, as published"), el("option", { value: "kazoo" }, "kazoo: data, plain keys"));
  const accountHint = el("span", { class: "hint", id: "account-hint" });
  const tokenWords = el("span", { class: "hint", id: "token-hint" });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const form = el(
    "form",
    { class: "stack", onsubmit: (event) => (event.preventDefault(), press()) },
    field("Address", address),
    field("Account", account, accountHint),
    field("Token", token, tokenWords),
    el("details", {}, el("summary", {}, "More"), el("label", { class: "field" }, "Shape of events", style)),
    wrong,
    el("button", { class: "main", type: "submit" }, "Connect"),
  );
  const where = el("code", { class: "grow" });
  const what = el("p", {});
  const why = el("p", { class: "small muted" });
  const live = el(
    "div",
    { class: "stack" },
    what,
    why,
    el("div", { class: "row small" }, where),
    el("div", { class: "row" }, el("button", { class: "tight", type: "button", onclick: () => connection.leave() }, "Disconnect")),
  );
  const news = el("div", { class: "note" });
  root.append(
    el("div", { class: "head" }, el("h2", {}, "Connection")),
    el("div", { class: "body stack" }, form, live, news),
  );
  news.hidden = true;
  live.hidden = true;

  let status = null;
  let isTyped = false;
  let wasLive = false;
  let newsTimer = 0;
  let countdown = 0;
  address.addEventListener("input", () => (isTyped = true));

  function press() {
    wrong.textContent = "";
    wasLive = false;
    try {
      connection.open(address.value.trim(), { token: token.value, account: account.value.trim().toLowerCase(), style: style.value });
    } catch (error) {
      wrong.textContent = error.message;
    }
  }

  function say(words, tone) {
    news.textContent = words;
    news.dataset.tone = tone;
    news.hidden = false;
    announce(words);
    clearTimeout(newsTimer);
    newsTimer = setTimeout(() => (news.hidden = true), CONNECTION_NEWS_MS);
  }

  function sayState(state, toAll = true) {
    const [tone, words] = connectionWords(state);
    const pill = byId("client-state");
    pill.dataset.tone = tone;
    byId("client-word").textContent = words;
    const isThere = state.name !== "none" && state.name !== "closed" && state.name !== "refused";
    form.hidden = isThere;
    live.hidden = !isThere;
    where.textContent = address.value;
    what.replaceChildren(el("span", { class: "pill", "data-tone": tone }, el("i", { class: "dot" }), el("span", {}, words)));
    const hint = wasLive || state.name === "live" ? null : connectionHint(address.value, status, location);
    why.textContent = state.name === "reconnecting" ? [state.why, hint].filter(Boolean).join(" ") : "";
    why.hidden = why.textContent === "";
    if (state.name === "refused") wrong.textContent = `The server refused the connection: ${state.why}`;
    if (toAll) announce(state.name === "refused" ? wrong.textContent : words);
  }

  connection.listen((happened, value) => {
    if (happened === "gap") say(gapWords(value), "warn");
    if (happened === "resumed") say(resumedWords(value), "good");
    if (happened !== "state") return;
    clearInterval(countdown);
    sayState(value);
    if (value.name === "live") wasLive = true;
    if (value.name === "reconnecting" && value.inMs > 0) {
      const until = performance.now() + value.inMs;
      countdown = setInterval(() => {
        const inMs = until - performance.now();
        sayState({ ...value, inMs: Math.max(0, inMs) }, false);
      }, 1000);
    }
  });

  onStatus((answer) => {
    const isFirst = status === null;
    status = answer;
    const own = websocketAddress(answer.websocket, location);
    if (!isTyped && form.hidden === false && own !== "") address.value = own;
    tokenWords.textContent = tokenHint(answer.auth);
    const demo = answer.source.demo_account;
    accountHint.textContent = demo
      ? "Events are made up here for trying, for this account."
      : answer.auth.includes("insecure")
        ? "Required: 32 hex digits."
        : "Empty: the token's own. 32 hex digits, or * for all accounts.";
    if (isFirst && demo && account.value === "") account.value = demo;
    if (isFirst && answer.auth.includes("insecure") && token.value === "") token.value = "any";
  });

  return {
    prefill(parameters) {
      const given = parameters.get("account");
      if (given !== null && form.hidden === false) account.value = given;
    },
    /** Connects as the button does, or shows what is missing. */
    press() {
      if (form.reportValidity()) press();
    },
  };
}
