// Small plots: the readings of the last minutes, their line, and the same in words for those who do not see the line.
//
// Invariants: pure but for `PlotTile`, which draws. A series keeps no more than PLOT_POINTS_MAX readings, and none that is
// older than its window. A hole in the readings is a hole in the line.

/** Readings that a series keeps; the oldest go first. */
const PLOT_POINTS_MAX = 600;

/** Two readings further apart than this are not joined by a line. */
const PLOT_HOLE_SECONDS = 3.5;

/** The line spans at least so much time, and then as much as there are readings for, up to the window of its series. */
const PLOT_SPAN_MIN_SECONDS = 30;

/** Units of the picture, whatever its size on the screen. */
const PLOT_WIDTH = 300;
const PLOT_HEIGHT = 60;

/** The readings of one figure, the oldest first. */
class PlotSeries {
  /** `[{at, value}]`: `at` in seconds of any clock that only rises; `value` is `null` where there is a hole. */
  points = [];

  constructor(windowSeconds) {
    this.windowSeconds = windowSeconds;
  }

  /** Adds a reading, and drops those that are out of the window. */
  push(at, value) {
    this.points.push({ at, value });
    const kept = this.points.findIndex((point) => point.at >= at - this.windowSeconds);
    this.points.splice(0, Math.max(kept, this.points.length - PLOT_POINTS_MAX));
  }

  /** How much time the readings tell of, in seconds. */
  span() {
    return this.points.length === 0 ? 0 : this.points.at(-1).at - this.points[0].at;
  }

  /** The values without the holes. */
  values() {
    return this.points.map(({ value }) => value).filter((value) => value !== null);
  }

  /** The least and the greatest value, or `null`. */
  range() {
    const values = this.values();
    return values.length === 0 ? null : { least: Math.min(...values), greatest: Math.max(...values) };
  }
}

/** The least 1, 2 or 5 times a power of ten that is not less than `value`: where an axis ends. */
function plotCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5].find((step) => step * power >= value * (1 - 1e-9)) ?? 10;
  return Number((step * power).toPrecision(1));
}

/** The same for bytes: the least power of two. */
function plotBytesCeiling(value) {
  return value > 1 ? 2 ** Math.ceil(Math.log2(value)) : 1;
}

/**
 * The line of a series as an SVG path, and the area beneath it. The right edge is the newest reading, the left edge the
 * oldest; the top is `ceiling`. A single reading between two holes is a short line.
 */
function plotPaths(series, ceiling) {
  const now = series.points.at(-1)?.at;
  const span = Math.max(PLOT_SPAN_MIN_SECONDS, series.span());
  const x = (at) => plotRound(PLOT_WIDTH * (1 - (now - at) / span));
  const y = (value) => plotRound(PLOT_HEIGHT * (1 - Math.min(value / ceiling, 1)));
  let line = "";
  let area = "";
  for (const run of plotRuns(series.points)) {
    const points = run.map(({ at, value }) => `${x(at)} ${y(value)}`);
    const [left, right] = [x(run[0].at), x(run.at(-1).at)];
    if (points.length === 1) points.unshift(`${plotRound(left - 1)} ${y(run[0].value)}`);
    line += `M${points.join("L")}`;
    area += `M${left} ${PLOT_HEIGHT}L${points.join("L")}L${right} ${PLOT_HEIGHT}Z`;
  }
  return { line, area };
}

function plotRound(number) {
  return Math.round(number * 10) / 10;
}

/** The readings between the holes, in turn. */
function plotRuns(points) {
  const runs = [[]];
  for (const point of points) {
    const run = runs.at(-1);
    const isApart = run.length > 0 && point.at - run.at(-1).at > PLOT_HOLE_SECONDS;
    if (point.value === null || isApart) runs.push([]);
    if (point.value !== null) runs.at(-1).push(point);
  }
  return runs.filter((run) => run.length > 0);
}

/**
 * Where a series goes: `"rising"`, `"falling"` or `"steady"`, by the mean of its newer half against that of its older
 * half; a tenth of the greater decides. `null`: there are too few readings.
 */
function plotTrend(series) {
  const values = series.values();
  if (values.length < 4) return null;
  const half = values.length >> 1;
  const mean = (some) => some.reduce((sum, value) => sum + value, 0) / some.length;
  const [older, newer] = [mean(values.slice(0, half)), mean(values.slice(half))];
  if (Math.abs(newer - older) <= 0.1 * Math.max(Math.abs(older), Math.abs(newer))) return "steady";
  return newer > older ? "rising" : "falling";
}

/** The trend and the range of a series in words; empty: there are too few readings. `write`: a value as text. */
function plotWords(series, write) {
  const trend = plotTrend(series);
  if (trend === null) return "";
  const { least, greatest } = series.range();
  const span = durationText(Math.round(series.span()));
  if (write(least) === write(greatest)) return `steady at ${write(least)} for ${span}`;
  return `${trend}, ${write(least)} to ${write(greatest)} within ${span}`;
}

/** An element of a drawing. */
function plotSvg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** One figure on the page: its title, its value and its trend in words, and its line. */
class PlotTile {
  #series;
  #write;
  #ceiling;
  #value = el("p", { class: "plot-value" }, "…");
  #note = el("p", { class: "plot-note" });
  #trend = el("p", { class: "plot-trend" });
  #top = el("span", { class: "plot-top", "aria-hidden": "true" });
  #line = plotSvg("path", { class: "plot-line", "vector-effect": "non-scaling-stroke" });
  #area = plotSvg("path", { class: "plot-area" });

  /** `write`: a value as text. `ceiling`: where the axis ends for a value. `windowSeconds`: what the line shows. */
  constructor({ title, write, ceiling = plotCeiling, windowSeconds }) {
    this.#series = new PlotSeries(windowSeconds);
    this.#write = write;
    this.#ceiling = ceiling;
    const size = { viewBox: `0 0 ${PLOT_WIDTH} ${PLOT_HEIGHT}`, preserveAspectRatio: "none" };
    // The words beside it say the same.
    const picture = plotSvg("svg", { ...size, "aria-hidden": "true" }, this.#area, this.#line);
    this.root = el(
      "li",
      { class: "plot" },
      el("h3", {}, title),
      this.#value,
      this.#note,
      el("div", { class: "plot-picture" }, picture, this.#top),
      this.#trend,
    );
  }

  /** Adds a reading. `text`: the value in words, where `write` does not tell all; `note`: what belongs to it. */
  push(at, { value, text = null, note = "" }) {
    this.#series.push(at, value);
    const range = this.#series.range();
    const ceiling = this.#ceiling(range?.greatest ?? 0);
    const { line, area } = plotPaths(this.#series, ceiling);
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
    setText(this.#top, range === null ? "" : this.#write(ceiling));
    setText(this.#value, text ?? (value === null ? "–" : this.#write(value)));
    setText(this.#note, note);
    setText(this.#trend, plotWords(this.#series, this.#write));
  }
}
