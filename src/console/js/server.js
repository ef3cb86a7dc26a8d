// The view `#server`: figures of the server as small plots, read from `/metrics` each second while the view is seen.
//
// Invariants: one request is under way at a time, and none while nobody sees the view. A second without an answer is a hole
// in the plots, and is said in words. Nothing here is a live region, or a screen reader would never fall silent: every
// figure is a text that can be read at any time.

/** Time from one reading to the next, in milliseconds. */
const SERVER_READ_EVERY = 1000;

/** A reading that takes longer is given up, in milliseconds. */
const SERVER_READ_TIMEOUT = 5000;

/** What the plots show, in seconds. */
const SERVER_PLOTTED = 180;

/** Readings over which quantiles are taken: so many that a server with few events has some. */
const SERVER_QUANTILE_READINGS = 11;

/** What should stay 0, or what an operator wants to know of when it grows: `[metric, words]`. */
const SERVER_INCIDENTS = [
  ["blackhole_frames_dropped_total", "events dropped for clients that read too slowly"],
  ["blackhole_gap_notices_total", "sessions told of a loss"],
  ["blackhole_source_outages_total", "outages of the source of events"],
  ["blackhole_amqp_bindings_lost", "bindings that the broker refuses"],
  ["blackhole_amqp_overflow_suspicions_total", "looks that found the broker's queue full"],
  ["blackhole_amqp_undecodable_total", "deliveries that could not be read"],
  ["blackhole_handshakes_refused_total", "handshakes refused"],
  ["blackhole_connections_dropped_total", "connections dropped before they were sessions"],
  ["blackhole_authentications_failed_total", "authentications failed"],
  ["blackhole_trace_left_out_total", "lines left out of traces"],
  ["blackhole_log_lines_dropped_total", "lines of the log lost"],
];

/** The figures of the newest of some readings `{at, metrics}`, the oldest first; `at` in seconds. `null`: not known. */
function serverFigures(readings) {
  const { at, metrics } = readings.at(-1);
  const [oldest, before] = [readings[0], readings.at(-2) ?? null];
  const rate = (name) => before && metricsRate(before.metrics.sum(name), metrics.sum(name), at - before.at);
  const times = (name) => {
    const grown = metricsGrowth(oldest.metrics.histogram(name), metrics.histogram(name));
    return { median: metricsQuantile(grown, 0.5), late: metricsQuantile(grown, 0.99) };
  };
  return {
    sessions: metrics.value("blackhole_sessions"),
    connectionsMax: metrics.value("blackhole_connections_max"),
    events: rate("blackhole_events_total"),
    frames: rate("blackhole_frames_delivered_total"),
    lag: times("blackhole_loop_lag_seconds"),
    age: times("blackhole_event_age_seconds"),
    waiting: metrics.value("blackhole_outboxes_blocked_bytes"),
    waitingMax: metrics.value("blackhole_outboxes_bytes_max"),
    blocked: metrics.value("blackhole_outboxes_blocked"),
    memory: metrics.value("process_resident_memory_bytes"),
    cpu: rate("process_cpu_seconds_total"),
  };
}

/** What has gone wrong since the process began: `[{words, total}]`, without what has not. */
function serverIncidents(metrics) {
  const all = SERVER_INCIDENTS.map(([name, words]) => ({ words, total: metrics.sum(name) ?? 0 }));
  return all.filter(({ total }) => total > 0);
}

/** A quantile in words; those of the first and the last bucket say so. */
function serverQuantileWords(quantile) {
  const sign = { "<": "under ", ">": "over " }[quantile.sign] ?? "";
  return sign + durationText(quantile.value);
}

/** What a tile tells of quantiles. `why`: there are none. */
function serverTimes({ median, late }, why) {
  if (late === null) return { value: null, note: why };
  return { value: late.value, text: serverQuantileWords(late), note: `median ${serverQuantileWords(median)}` };
}

/** The tiles: how a value is written, and what is told of the figures ([`PlotTile.push`]). */
const SERVER_TILES = [
  {
    title: "Sessions",
    write: (value) => countText(Math.round(value)),
    tell: ({ sessions, connectionsMax: max }) => ({ value: sessions, note: max === null ? "" : `room for ${countText(max)}` }),
  },
  {
    title: "Events a second",
    write: (value) => shortText(value),
    tell: ({ events }) => ({ value: events, note: "from the source" }),
  },
  {
    title: "Frames a second",
    write: (value) => shortText(value),
    tell: ({ frames }) => ({ value: frames, note: "to sessions" }),
  },
  {
    title: "Loop lag, p99",
    write: (value) => durationText(value),
    tell: ({ lag }) => serverTimes(lag, "measured with sessions and pings"),
  },
  {
    title: "Event age, p99",
    write: (value) => durationText(value),
    tell: ({ age }) => serverTimes(age, "no event for a session lately"),
  },
  {
    title: "Outbox bytes",
    write: (value) => bytesText(value),
    ceiling: plotBytesCeiling,
    tell: ({ waiting, waitingMax, blocked }) => ({
      value: waiting,
      note: [
        blocked > 0 ? `${countText(blocked)} slow clients` : "for slow clients",
        waitingMax === null ? "" : `room for ${bytesText(waitingMax)}`,
      ]
        .filter(Boolean)
        .join(", "),
    }),
  },
  {
    title: "Memory",
    write: (value) => bytesText(value),
    ceiling: plotBytesCeiling,
    tell: ({ memory }) => ({ value: memory, note: "resident" }),
  },
  {
    title: "CPU",
    write: (value) => `${shortText(value * 100)} %`,
    tell: ({ cpu }) => ({ value: cpu, note: "of one core" }),
  },
];

/** The view. */
class ServerView {
  #readings = [];
  #reading = null;
  #timer = 0;
  #isShown = false;
  #isPaused = false;
  #lastGood = null;
  #started = null;
  #state = el("p", { class: "grow muted", id: "server-live" }, "Asking");
  #incidents = el("ul", { class: "incidents" });
  #pause = el("button", { class: "plain", "aria-pressed": "false", onclick: () => this.#setPaused(!this.#isPaused) }, "Pause");
  #tiles = SERVER_TILES.map(({ tell, ...how }) => ({
    tell,
    plot: new PlotTile({ ...how, windowSeconds: SERVER_PLOTTED }),
  }));

  constructor(root) {
    root.append(
      el("div", { class: "row" }, el("h2", {}, "The server now"), this.#state, this.#pause),
      el("ul", { class: "plots", "aria-label": "Figures of the server" }, ...this.#tiles.map(({ plot }) => plot.root)),
      el("div", { class: "card incidents-card" },
        el("div", { class: "head" }, el("h2", {}, "Losses and refusals since the process began")),
        el("div", { class: "body" }, this.#incidents),
      ),
    );
  }

  show() {
    this.#isShown = true;
    this.#readOrRest();
  }

  hide() {
    this.#isShown = false;
    this.#readOrRest();
  }

  #setPaused(isPaused) {
    this.#isPaused = isPaused;
    this.#pause.setAttribute("aria-pressed", String(isPaused));
    if (isPaused) setText(this.#state, "Paused");
    this.#readOrRest();
  }

  /** Reads from now on if somebody sees it, else not. */
  #readOrRest() {
    clearTimeout(this.#timer);
    const isWanted = this.#isShown && !this.#isPaused;
    if (!isWanted) this.#reading?.abort();
    else if (this.#reading === null) this.#read();
  }

  /** One reading, and then the next. */
  async #read() {
    const begun = performance.now();
    const reading = new AbortController();
    this.#reading = reading;
    const signal = AbortSignal.any([reading.signal, AbortSignal.timeout(SERVER_READ_TIMEOUT)]);
    try {
      const page = await (await api("/metrics", { signal, quiet: true })).text();
      this.#take(performance.now() / 1000, new MetricsPage(page));
    } catch (error) {
      if (!reading.signal.aborted) this.#miss(performance.now() / 1000, error);
    }
    this.#reading = null;
    const wait = reading.signal.aborted ? 0 : Math.max(0, begun + SERVER_READ_EVERY - performance.now());
    this.#timer = setTimeout(() => this.#readOrRest(), wait);
  }

  /** A reading has come. */
  #take(at, metrics) {
    const started = metrics.value("process_start_time_seconds");
    if (started !== this.#started) {
      // Another process: its counters have nothing to do with those before.
      this.#readings = [];
      this.#started = started;
    }
    this.#readings.push({ at, metrics });
    this.#readings.splice(0, this.#readings.length - SERVER_QUANTILE_READINGS);
    this.#lastGood = at;
    const figures = serverFigures(this.#readings);
    for (const { tell, plot } of this.#tiles) plot.push(at, tell(figures));
    const age = started === null ? null : Math.max(0, Date.now() / 1000 - started);
    setText(this.#state, age === null ? "Live" : `Live; running for ${durationText(Math.floor(age))}`);
    this.#tellIncidents(serverIncidents(metrics));
  }

  /** A reading has not come. */
  #miss(at, error) {
    const why = error instanceof ApiError ? error.message : "The server does not answer";
    const since = this.#lastGood === null ? "" : ` for ${durationText(Math.round(at - this.#lastGood))}`;
    setText(this.#state, `No figures${since}: ${why}`);
    for (const { plot } of this.#tiles) plot.push(at, { value: null, note: "no answer" });
    this.#readings = [];
  }

  #tellIncidents(incidents) {
    const lines = incidents.map(({ words, total }) => `${countText(total)} ${words}`);
    if (lines.length === 0) lines.push("None");
    while (this.#incidents.childElementCount > lines.length) this.#incidents.lastElementChild.remove();
    while (this.#incidents.childElementCount < lines.length) this.#incidents.append(el("li"));
    lines.forEach((line, at) => setText(this.#incidents.children[at], line));
  }
}

/** Builds the view into `root`. */
function startServer(root) {
  const view = new ServerView(root);
  registerView("server", { show: () => view.show(), hide: () => view.hide() });
}
