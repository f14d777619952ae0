const steps = [
  [1000, "M"], [900, "CM"], [500, "D"], [400, "CD"], [100, "C"], [90, "XC"], [50, "L"],
  [40, "XL"], [10, "X"], [9, "IX"], [5, "V"], [4, "IV"], [1, "I"],
];

export function format(n) {
  if (!Number.isInteger(n) || n < 1 || n > 3999) throw new RangeError(`${n} is not from 1 to 3999`);
  let s = "";
  for (const [value, text] of steps) {
    for (; n >= value; n -= value) s += text;
  }
  return s;
}
