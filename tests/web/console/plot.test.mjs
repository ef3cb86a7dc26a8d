// The console's small plots: what of them is a line, and what is words.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";

const { PLOT_POINTS_MAX, PlotSeries, plotBytesCeiling, plotCeiling, plotPaths, plotTrend, plotWords } = await consoleModule(
  ["ui.js", "plot.js"],
  ["PLOT_POINTS_MAX", "PlotSeries", "plotBytesCeiling", "plotCeiling", "plotPaths", "plotTrend", "plotWords"],
);

function seriesOf(values, windowSeconds = 100) {
  const series = new PlotSeries(windowSeconds);
  values.forEach((value, at) => series.push(at, value));
  return series;
}

test("a series forgets what is out of its window, and is bounded however often it is fed", () => {
  const series = seriesOf([1, 2, 3, 4, 5, 6], 3);
  assert.deepEqual(series.points.map(({ value }) => value), [3, 4, 5, 6]);
  const fast = new PlotSeries(1000);
  for (let at = 0; at < 10 * PLOT_POINTS_MAX; at += 1) fast.push(at / 1000, at);
  assert.equal(fast.points.length, PLOT_POINTS_MAX);
  assert.equal(fast.points.at(-1).value, 10 * PLOT_POINTS_MAX - 1);
  assert.deepEqual(seriesOf([null, 4, null, 2]).range(), { least: 2, greatest: 4 });
  assert.equal(seriesOf([null]).range(), null);
});

test("the line goes from left to right, upside up, and breaks at holes", () => {
  const every3 = (values) => {
    const series = new PlotSeries(1000);
    values.forEach((value, at) => series.push(3 * at, value));
    return series;
  };
  const rising = every3([0, 2, 4, 6, 8, 10, 8, 6, 4, 2, 0]);
  const line = "M0 60L30 48L60 36L90 24L120 12L150 0L180 12L210 24L240 36L270 48L300 60";
  assert.deepEqual(plotPaths(rising, 10), { line, area: `M0 60L${line.slice(1)}L300 60Z` });
  assert.equal(plotPaths(every3([5, 5, null, 5, 5]), 10).line, "M180 30L210 30M270 30L300 30", "30 s at least");
  const apart = new PlotSeries(100);
  for (const at of [0, 1, 50, 51]) apart.push(at, 1);
  assert.equal(plotPaths(apart, 1).line.match(/M/g).length, 2, "a time without readings is a hole");
  assert.match(plotPaths(apart, 1).line, /^M0 0L.*L300 0$/, "all there is");
  assert.equal(plotPaths(seriesOf([7]), 10).line, "M299 18L300 18", "a single reading is seen");
  assert.deepEqual(plotPaths(seriesOf([null]), 1), { line: "", area: "" });
  assert.deepEqual(plotPaths(seriesOf([]), 1), { line: "", area: "" });
  assert.doesNotMatch(plotPaths(seriesOf([0, 0]), plotCeiling(0)).line, /NaN|Infinity/);
});

test("an axis ends at a round number that nothing is above", () => {
  const ceilings = [0, 1, 1.2, 2, 3, 7, 10, 11, 0.0013, 4_200_000].map(plotCeiling);
  assert.deepEqual(ceilings, [1, 1, 2, 2, 5, 10, 10, 20, 0.002, 5_000_000]);
  assert.deepEqual([0, 1, 2, 3, 17_981_440].map(plotBytesCeiling), [1, 1, 2, 4, 33_554_432]);
});

test("the trend is told in a word, and only when there is one to tell", () => {
  assert.equal(plotTrend(seriesOf([1, 2, 3])), null);
  assert.equal(plotTrend(seriesOf([0, 0, 0, 0])), "steady");
  assert.equal(plotTrend(seriesOf([100, 101, 103, 102])), "steady");
  assert.equal(plotTrend(seriesOf([1, 2, 3, 4])), "rising");
  assert.equal(plotTrend(seriesOf([4, null, 3, 2, 1])), "falling");
});

test("the line is told in words", () => {
  const write = (value) => `${value} ms`;
  assert.equal(plotWords(seriesOf([1, 2, 3]), write), "");
  assert.equal(plotWords(seriesOf([1, 2, 3, 4]), write), "rising, 1 ms to 4 ms within 3 s");
  assert.equal(plotWords(seriesOf([5, 5, 5, 5]), write), "steady at 5 ms for 3 s");
});
