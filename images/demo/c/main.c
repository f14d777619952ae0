#include "roman.h"

#include <stdio.h>

/* Prints every numeral, one a line. */
int main(void)
{
	char s[ROMAN_MAX];

	for (int n = 1; roman_format(n, s); n++)
		puts(s);
	return 0;
}
