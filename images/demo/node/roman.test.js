import assert from "node:assert";
import test from "node:test";
import { format } from "./roman.js";

test("known numerals", () => {
  assert.equal(format(1994), "MCMXCIV");
  assert.equal(format(3888), "MMMDCCCLXXXVIII");
});

test("refusals", () => {
  for (const n of [0, 4000, 1.5, "x"]) assert.throws(() => format(n), RangeError);
});
