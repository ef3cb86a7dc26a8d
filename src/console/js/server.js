<<<<<<< HEAD
// The view `#server`.

/** Builds the view inside `root`. */
export function startServer(root) {
  registerView("server", { show() {}, hide() {} });
}
=======
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
  return sign + uiDuration(quantile.value);
}

/** What a tile tells of quantiles. `why`: there are none. */
function serverTimes({ median, late }, why) {
  if (late === null) return { value: null, note: why };
  return { value: late.value, text: serverQuantileWords(late), note: `half of them ${serverQuantileWords(median)}` };
}

/** The tiles: how a value is written, and what is told of the figures ([`PlotTile.push`]). */
const SERVER_TILES = [
  {
    title: "Sessions",
    write: (value) => uiCount(Math.round(value)),
    tell: ({ sessions, connectionsMax: max }) => ({ value: sessions, note: max === null ? "" : `room for ${uiCount(max)}` }),
  },
  {
    title: "Events a second",
    write: (value) => uiShort(value),
    tell: ({ events }) => ({ value: events, note: "from the source" }),
  },
  {
    title: "Frames a second",
    write: (value) => uiShort(value),
    tell: ({ frames }) => ({ value: frames, note: "to sessions" }),
  },
  {
    title: "Loop lag, 99 %",
    write: (value) => uiDuration(value),
    tell: ({ lag, sessions }) => serverTimes(lag, sessions === 0 ? "measured while there are sessions" : "no reading yet"),
  },
  {
    title: "Event age, 99 %",
    write: (value) => uiDuration(value),
    tell: ({ age }) => serverTimes(age, "no event for a session lately"),
  },
  {
    title: "Outbox bytes",
    write: (value) => uiBytes(value),
    tell: ({ waiting, waitingMax, blocked }) => ({
      value: waiting,
      note: [
        blocked > 0 ? `${uiCount(blocked)} slow clients` : "for slow clients",
        waitingMax === null ? "" : `room for ${uiBytes(waitingMax)}`,
      ]
        .filter(Boolean)
        .join(", "),
    }),
  },
  {
    title: "Memory",
    write: (value) => uiBytes(value),
    tell: ({ memory }) => ({ value: memory, note: "resident" }),
  },
  {
    title: "CPU",
    write: (value) => `${uiShort(value * 100)} %`,
    tell: ({ cpu }) => ({ value: cpu, note: "of one core" }),
  },
];

const serverView = {
  /** Once, at the start of the page. */
  start() {
    this.readings = [];
    this.reading = null;
    this.timer = 0;
    this.isShown = false;
    this.isPaused = false;
    this.lastGood = null;
    this.started = null;
    this.tiles = SERVER_TILES.map(({ title, write, tell }) => ({
      tell,
      plot: new PlotTile({ title, write, windowSeconds: SERVER_PLOTTED }),
    }));
    this.state = uiElement("p", { class: "server-state" });
    this.incidents = uiElement("ul", { class: "server-incidents" });
    this.pause = uiElement("button", { class: "plain", "aria-pressed": "false", click: () => this.setPaused(!this.isPaused) }, "Pause");
    uiById("server").append(
      uiElement("div", { class: "bar" }, uiElement("h2", {}, "The server now"), this.state, this.pause),
      uiElement("ul", { class: "plots", "aria-label": "Figures of the server" }, ...this.tiles.map(({ plot }) => plot.root)),
      uiElement("h3", {}, "Losses and refusals since the process began"),
      this.incidents,
    );
    document.addEventListener("visibilitychange", () => this.readOrRest());
  },

  /** It has come into sight, or got other parameters (`URLSearchParams`). */
  shown() {
    this.isShown = true;
    this.readOrRest();
  },

  /** It went out of sight. */
  left() {
    this.isShown = false;
    this.readOrRest();
  },

  setPaused(isPaused) {
    this.isPaused = isPaused;
    this.pause.setAttribute("aria-pressed", String(isPaused));
    uiText(this.state, isPaused ? "Paused" : "");
    this.readOrRest();
  },

  /** Reads from now on if somebody sees it, else not. */
  readOrRest() {
    clearTimeout(this.timer);
    this.timer = 0;
    const isWanted = this.isShown && !this.isPaused && document.visibilityState === "visible";
    if (isWanted && this.reading === null) this.read();
    if (!isWanted) this.reading?.abort();
  },

  /** One reading, and then the next. */
  async read() {
    const begun = performance.now();
    const reading = new AbortController();
    this.reading = reading;
    const timeout = setTimeout(() => reading.abort("timeout"), SERVER_READ_TIMEOUT);
    try {
      const page = await api("/metrics", { signal: reading.signal, quiet: true });
      this.take(performance.now() / 1000, new MetricsPage(page));
    } catch (error) {
      if (!reading.signal.aborted || reading.signal.reason === "timeout") this.miss(performance.now() / 1000, error);
    } finally {
      clearTimeout(timeout);
      this.reading = null;
    }
    const wait = Math.max(0, begun + SERVER_READ_EVERY - performance.now());
    if (reading.signal.aborted && reading.signal.reason !== "timeout") this.readOrRest();
    else this.timer = setTimeout(() => this.readOrRest(), wait);
  },

  /** A reading has come. */
  take(at, metrics) {
    const started = metrics.value("process_start_time_seconds");
    if (started !== this.started) {
      // Another process: its counters have nothing to do with those before.
      this.readings = [];
      this.started = started;
    }
    this.readings.push({ at, metrics });
    this.readings.splice(0, this.readings.length - SERVER_QUANTILE_READINGS);
    this.lastGood = at;
    const figures = serverFigures(this.readings);
    for (const { tell, plot } of this.tiles) plot.push(at, tell(figures));
    uiText(this.state, started === null ? "Live" : `Live; running for ${uiDuration(Math.max(0, Date.now() / 1000 - started))}`);
    this.tellIncidents(serverIncidents(metrics));
  },

  /** A reading has not come. */
  miss(at, error) {
    const why = error.name === "ApiError" ? error.message : "The server does not answer";
    const since = this.lastGood === null ? "" : ` for ${uiDuration(Math.round(at - this.lastGood))}`;
    uiText(this.state, `No figures${since}: ${why}`);
    for (const { plot } of this.tiles) plot.push(at, { value: null, note: "no answer" });
    this.readings = [];
  },

  tellIncidents(incidents) {
    const lines = incidents.map(({ words, total }) => `${uiCount(total)} ${words}`);
    if (lines.length === 0) lines.push("None");
    while (this.incidents.childElementCount > lines.length) this.incidents.lastElementChild.remove();
    while (this.incidents.childElementCount < lines.length) this.incidents.append(uiElement("li"));
    lines.forEach((line, at) => uiText(this.incidents.children[at], line));
  },
};
>>>>>>> work-C2
