// The bindings: those on offer, and those that are wanted, with what became of each.
//
// Invariant: what is wanted is asked for again with every connection that is made by hand; the client itself does so after
// a connection was lost. Each binding is a subscription of its own, so each can be refused, counted and ended by itself.

/** Bindings worth a button of their own: each with its family, and words. */
const BINDING_SHORTCUTS = [
  ["call", "call.*.*", "All calls"],
  ["object", "object.*.*", "All documents"],
  ["fax", "fax.object.*", "Fax documents"],
  ["registration", "registration.success", "Registrations"],
];

/** What is wanted until the user chooses: with the embedded source, and on most platforms, events of it come at once. */
const BINDING_FIRST = "call.*.*";

/** A placeholder of an offer that `*` cannot stand for, because who knows the id has the right to it. */
const BINDING_NEEDED = /\{CONFERENCE_ID\}/;

/** Offers that are drawn at most; the search finds the others. */
const BINDING_OFFERS_MAX = 120;

/** An offer as a binding: what is not given stands for all. Returns the binding, and the part that is to be given. */
export function bindingOfOffer(offer) {
  const needed = offer.match(BINDING_NEEDED)?.[0] ?? null;
  const binding = offer.replace(/\{[A-Z0-9_]+\}/g, (place) => (place === needed ? place : "*"));
  return { binding, needed };
}

/** Why bindings ended, as words. */
function endWords({ reason, errors }) {
  const words = {
    rights: "the token may not see this any more",
    identity: "another token may not see this",
    module: "the server has switched this family off",
  };
  if (errors.length > 0) return errors.join("; ");
  return Object.hasOwn(words, reason) ? words[reason] : reason;
}

/**
 * Builds the card of the bindings inside `root`. Returns `wanted`, those that are wanted; `want(binding)`; and `wantFirst()`,
 * which wants a first one, so that there is something to see, unless one is wanted or was removed.
 */
export function startBindings(root, connection) {
  /** Binding -> `{state, why, subscription, count}`; state: `waiting`, `asking`, `live`, `refused`. */
  const wanted = new Map();
  let families = {};
  let isBegun = false;
  const list = el("ul", { class: "bound", "aria-label": "Bindings" });
  const none = el("p", { class: "small muted" }, "None yet. Choose one below, or type one.");
  const input = el("input", { class: "mono", placeholder: "call.CHANNEL_CREATE.*", autocomplete: "off", spellcheck: "false", "aria-label": "A binding, or words to search the offers by", oninput: () => draw() });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const shortcuts = el("div", { class: "chips" });
  const offer = el("div", { class: "offer", role: "group", "aria-label": "Bindings on offer" });
  const more = el(
    "details",
    {},
    el("summary", {}, "What else the server offers"),
    offer,
  );
  root.append(
    el("div", { class: "head" }, el("h2", {}, "Bindings")),
    el(
      "div",
      { class: "body stack" },
      list,
      none,
      shortcuts,
      el(
        "form",
        { class: "row", onsubmit: (event) => (event.preventDefault(), add(input.value.trim())) },
        el("span", { class: "grow" }, input),
        el("button", { type: "submit" }, "Add"),
      ),
      wrong,
      more,
    ),
  );

  function add(binding) {
    wrong.textContent = "";
    if (binding === "") return input.focus();
    const open = binding.match(/\{[A-Z0-9_]+\}/);
    if (open !== null) {
      wrong.textContent = `Put the id in the place of ${open[0]}.`;
      input.focus();
      return input.setSelectionRange(open.index, open.index + open[0].length);
    }
    if (wanted.get(binding)?.state !== "refused" && wanted.has(binding)) {
      wrong.textContent = "That one is there already.";
      return;
    }
    input.value = "";
    want(binding);
    draw();
  }

  function want(binding) {
    wanted.set(binding, { state: "waiting", why: "", subscription: null, count: 0 });
    if (connection.client !== null) void ask(binding, connection.client);
    drawWanted();
  }

  async function ask(binding, client) {
    const entry = wanted.get(binding);
    entry.state = "asking";
    entry.why = "";
    drawWanted();
    try {
      const subscription = await client.subscribe(binding, {
        onEvent: () => {
          entry.count += 1;
          drawCounts();
        },
      });
      if (wanted.get(binding) !== entry || connection.client !== client) return void subscription.unsubscribe();
      entry.state = "live";
      entry.subscription = subscription;
      announce(`Subscribed to ${binding}`);
    } catch (error) {
      if (wanted.get(binding) !== entry || connection.client !== client) return;
      if (error.code === "closed") {
        entry.state = "waiting";
      } else {
        entry.state = "refused";
        entry.why = error.errors?.length > 0 ? error.errors.join("; ") : error.message;
        announce(`${binding} was refused: ${entry.why}`);
      }
    }
    drawWanted();
  }

  function drop(binding) {
    const entry = wanted.get(binding);
    wanted.delete(binding);
    void entry.subscription?.unsubscribe();
    drawWanted();
    input.focus();
  }

  const counts = new Map();
  const drawCounts = perFrame(() => {
    for (const [binding, element] of counts) element.textContent = countOf(wanted.get(binding));
  });

  function countOf(entry) {
    if (entry === undefined) return "";
    if (entry.state === "live") return entry.count === 0 ? "live" : countText(entry.count);
    return { waiting: "not connected", asking: "asking", refused: "refused" }[entry.state];
  }

  function drawWanted() {
    counts.clear();
    list.replaceChildren(
      ...[...wanted].map(([binding, entry]) => {
        const count = el("span", { class: "count" }, countOf(entry));
        counts.set(binding, count);
        return el(
          "li",
          { "data-state": entry.state },
          el(
            "div",
            { class: "grow" },
            el("code", {}, binding),
            entry.why === "" ? null : el("p", { class: "wrong" }, entry.why),
          ),
          count,
          el("button", { class: "plain icon tight", type: "button", "aria-label": `Remove ${binding}`, onclick: () => drop(binding) }, icon("M5 5l10 10M15 5L5 15")),
        );
      }),
    );
    list.hidden = wanted.size === 0;
    none.hidden = wanted.size > 0;
    drawShortcuts();
  }

  function drawShortcuts() {
    const offered = BINDING_SHORTCUTS.filter(([family, binding]) => Object.hasOwn(families, family) && !wanted.has(binding));
    shortcuts.replaceChildren(
      ...offered.map(([, binding, words]) => el("button", { class: "chip", type: "button", title: binding, onclick: () => want(binding) }, `+ ${words}`)),
    );
    shortcuts.hidden = offered.length === 0;
  }

  function draw() {
    const words = input.value.toLowerCase().split(/[\s.*]+/).filter(Boolean);
    const parts = [];
    let left = BINDING_OFFERS_MAX;
    for (const [family, offers] of Object.entries(families)) {
      const found = offers.filter((one) => words.every((word) => one.toLowerCase().includes(word))).slice(0, left);
      if (found.length === 0) continue;
      left -= found.length;
      parts.push(el("h3", {}, family));
      for (const one of found) {
        const { binding, needed } = bindingOfOffer(one);
        const press = () => {
          if (needed === null) return add(binding);
          input.value = binding;
          add(binding);
        };
        parts.push(el("button", { type: "button", onclick: press }, binding));
      }
    }
    const all = Object.values(families).reduce((sum, offers) => sum + offers.length, 0);
    if (parts.length === 0) {
      const none = all === 0 ? "The offers are not known yet." : "None on offer has these words; Add asks the server anyway.";
      parts.push(el("p", { class: "none" }, none));
    } else if (left <= 0) {
      parts.push(el("p", { class: "none" }, "Type above to find the others."));
    }
    offer.replaceChildren(...parts);
    if (words.length > 0 && document.activeElement === input) more.open = true;
  }

  async function askOffers() {
    try {
      const { data } = await (await api("/v2/websockets", { quiet: true })).json();
      families = data;
      drawWanted();
      draw();
    } catch {
      // The header says what is wrong; the next answer of /v2/status tries again.
    }
  }

  connection.listen((happened, ...values) => {
    if (happened === "opened") {
      for (const [binding, entry] of wanted) {
        entry.count = 0;
        entry.subscription = null;
        void ask(binding, values[0]);
      }
    }
    // A refused client has no subscriptions any more; those that were asked for are told by their promises.
    const isRefused = happened === "state" && values[0].name === "refused";
    if (isRefused) {
      for (const entry of wanted.values()) if (entry.state === "live") Object.assign(entry, { state: "waiting", subscription: null });
      drawWanted();
    }
    if (happened === "left") {
      for (const entry of wanted.values()) Object.assign(entry, { state: "waiting", why: "", subscription: null });
      drawWanted();
    }
    if (happened === "ended") {
      const [end, subscription] = values;
      for (const entry of wanted.values()) {
        if (entry.subscription !== subscription) continue;
        Object.assign(entry, { state: "refused", why: `Ended: ${endWords(end)}`, subscription: null });
      }
      drawWanted();
    }
  });
  onStatus(() => {
    if (Object.keys(families).length === 0) void askOffers();
  });
  draw();
  drawWanted();
  return {
    wanted,
    want(binding) {
      if (!wanted.has(binding)) want(binding);
    },
    wantFirst() {
      if (!isBegun && wanted.size === 0) want(BINDING_FIRST);
      isBegun = true;
    },
  };
}
