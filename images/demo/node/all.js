import { format } from "./roman.js";

// Prints every numeral, one a line.
for (let n = 1; n < 4000; n++) console.log(format(n));
