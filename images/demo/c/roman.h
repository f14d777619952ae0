#ifndef ROMAN_H
#define ROMAN_H

#include <stddef.h>

/* The longest numeral below 4000 is MMMDCCCLXXXVIII. */
#define ROMAN_MAX 16

/* Writes n, 1 to 3999, as a Roman numeral to out. Returns its length, or 0 if n is out of range. */
size_t roman_format(int n, char out[ROMAN_MAX]);

/* Reads a canonical numeral. Returns 0 if s is none. */
int roman_parse(const char *s);

#endif
