#include "roman.h"

#include <stdio.h>
#include <string.h>

static int failed;

#define CHECK(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
			failed = 1; \
		} \
	} while (0)

int main(void)
{
	char s[ROMAN_MAX];

	for (int n = 1; n < 4000; n++) {
		CHECK(roman_format(n, s) == strlen(s));
		CHECK(roman_parse(s) == n);
	}
	CHECK(roman_format(1994, s) && strcmp(s, "MCMXCIV") == 0);
	CHECK(roman_format(3888, s) == ROMAN_MAX - 1);
	CHECK(roman_format(0, s) == 0);
	CHECK(roman_format(4000, s) == 0);
	CHECK(roman_parse("IIII") == 0);
	CHECK(roman_parse("MMMM") == 0);
	CHECK(roman_parse("") == 0);
	CHECK(roman_parse("hello") == 0);
	return failed;
}
