// Which rows of a long list are drawn.

import assert from "node:assert/strict";
import { test } from "node:test";
import { consoleModule } from "./support.mjs";

const { VIRTUAL_MARGIN, virtualRange } = await consoleModule(["virtual.js"], ["VIRTUAL_MARGIN", "virtualRange"]);

test("the rows that are seen are drawn, a few above and below, and no others", () => {
  const count = 10_000;
  for (const height of [0, 39, 40, 801]) {
    for (const top of [0, 1, 40, 12_345, 399_999, 1e9, -50]) {
      const { first, end } = virtualRange({ count, rowHeight: 40, top, height });
      assert.ok(0 <= first && first < end && end <= count, `${first} ${end}`);
      assert.ok(end - first <= Math.ceil(height / 40) + 1 + 2 * VIRTUAL_MARGIN, `${first} ${end}`);
      const seen = Math.min(count - 1, Math.floor(Math.max(0, top) / 40));
      assert.ok(first <= seen && seen < end, `row ${seen} at ${top}: ${first} ${end}`);
    }
  }
  assert.deepEqual(virtualRange({ count: 0, rowHeight: 40, top: 0, height: 800 }), { first: 0, end: 0 });
  assert.deepEqual(virtualRange({ count: 5, rowHeight: 0, top: 0, height: 800 }), { first: 0, end: 0 });
  assert.deepEqual(virtualRange({ count: 5, rowHeight: 40, top: 0, height: 800 }), { first: 0, end: 5 });
});
