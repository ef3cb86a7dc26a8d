// The page of metrics as the console reads it: parsing, rates, quantiles from buckets.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";

const { MetricsPage, metricsGrowth, metricsQuantile, metricsRate } = await consoleModule(
  ["metrics.js"],
  ["MetricsPage", "metricsGrowth", "metricsQuantile", "metricsRate"],
);

const PAGE = `# HELP blackhole_sessions Upgraded sessions.
# TYPE blackhole_sessions gauge
blackhole_sessions 3
blackhole_closes_total{reason="peer"} 2
blackhole_closes_total{reason="lost"} 5
blackhole_commands_total{action="subscribe",result="ok"} 7
quoted{text="a \\"b\\" \\\\ c\\nd, e=\\"}\\"",other=""} 1 1700000000
spaced{ a="1" , b="2", } 4
exponent 1.5e-3
negative -2
infinite +Inf
no_value
bad value
unclosed{a="1" 5
lag_seconds_bucket{le="0.001"} 1
lag_seconds_bucket{le="+Inf"} 10
lag_seconds_bucket{le="0.01"} 4
lag_seconds_sum 0.5
lag_seconds_count 10
`;

test("samples are read with their labels, and what is no sample is passed over", () => {
  const metrics = new MetricsPage(PAGE);
  assert.equal(metrics.value("blackhole_sessions"), 3);
  assert.equal(metrics.sum("blackhole_closes_total"), 7);
  assert.deepEqual(
    metrics.samples("blackhole_closes_total").map(({ labels, value }) => [labels.reason, value]),
    [["peer", 2], ["lost", 5]],
  );
  assert.deepEqual(metrics.samples("blackhole_commands_total")[0].labels, { action: "subscribe", result: "ok" });
  assert.deepEqual(metrics.samples("quoted")[0].labels, { text: 'a "b" \\ c\nd, e="}"', other: "" });
  assert.equal(metrics.value("quoted"), 1);
  assert.deepEqual(metrics.samples("spaced")[0], { name: "spaced", labels: { a: "1", b: "2" }, value: 4 });
  assert.equal(metrics.value("exponent"), 0.0015);
  assert.equal(metrics.value("negative"), -2);
  assert.equal(metrics.value("infinite"), Infinity);
  for (const name of ["no_value", "bad", "unclosed", "nowhere", "HELP"]) {
    assert.equal(metrics.value(name), null, name);
    assert.equal(metrics.sum(name), null, name);
  }
});

test("a histogram is put in order and taken apart", () => {
  const metrics = new MetricsPage(PAGE);
  assert.deepEqual(metrics.histogram("lag_seconds"), { bounds: [0.001, 0.01, Infinity], counts: [1, 3, 6] });
  assert.equal(metrics.histogram("blackhole_sessions"), null);
});

test("a rate is told only of a counter that was read twice and did not fall", () => {
  assert.equal(metricsRate(10, 30, 2), 10);
  assert.equal(metricsRate(10, 10, 2), 0);
  assert.equal(metricsRate(30, 10, 2), null, "the process was restarted");
  assert.equal(metricsRate(null, 10, 2), null);
  assert.equal(metricsRate(10, null, 2), null);
  assert.equal(metricsRate(10, 30, 0), null);
});

test("quantiles are of what was added since, and say where the buckets end", () => {
  const bounds = [0.001, 0.01, 0.1, Infinity];
  const grown = (before, after) => metricsGrowth({ bounds, counts: before }, { bounds, counts: after });
  assert.equal(grown([1, 2, 3, 4], [1, 2, 3, 4]), null, "nothing was added");
  assert.equal(grown([1, 2, 3, 4], [5, 2, 2, 4]), null, "the process was restarted");
  assert.equal(metricsGrowth(null, { bounds, counts: [1, 1, 1, 1] }), null);
  assert.deepEqual(metricsQuantile(grown([5, 0, 0, 0], [15, 0, 0, 0]), 0.99), { value: 0.001, sign: "<" });
  assert.deepEqual(metricsQuantile(grown([0, 0, 0, 1], [0, 0, 0, 2]), 0.5), { value: 0.1, sign: ">" });
  const half = metricsQuantile(grown([0, 0, 0, 0], [0, 0, 10, 0]), 0.5);
  assert.equal(half.sign, "");
  assert.ok(Math.abs(half.value - 0.055) < 1e-12, `${half.value}`);
  // 98 of 100 are below 10 ms: the 99th is half-way through the next bucket.
  const late = metricsQuantile(grown([0, 0, 0, 0], [90, 8, 2, 0]), 0.99);
  assert.ok(Math.abs(late.value - 0.055) < 1e-12, `${late.value}`);
  assert.equal(metricsQuantile(null, 0.5), null);
});
