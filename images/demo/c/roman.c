#include "roman.h"

#include <string.h>

static const struct {
	int value;
	const char *text;
} steps[] = {
	{1000, "M"}, {900, "CM"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
	{40, "XL"},  {10, "X"},   {9, "IX"},  {5, "V"},    {4, "IV"},  {1, "I"},
};

size_t roman_format(int n, char out[ROMAN_MAX])
{
	size_t len = 0;

	if (n < 1 || n > 3999)
		return 0;
	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		for (; n >= steps[i].value; n -= steps[i].value) {
			size_t k = strlen(steps[i].text);
			memcpy(out + len, steps[i].text, k);
			len += k;
		}
	}
	out[len] = '\0';
	return len;
}

int roman_parse(const char *s)
{
	const char *p = s;
	char again[ROMAN_MAX];
	int n = 0;

	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		size_t k = strlen(steps[i].text);
		for (; strncmp(p, steps[i].text, k) == 0 && n <= 3999; p += k)
			n += steps[i].value;
	}
	/* IIII adds up as well, but is not how four is written. */
	if (*p != '\0' || roman_format(n, again) == 0 || strcmp(again, s) != 0)
		return 0;
	return n;
}
