// Musl is a client as programs without the GNU C library are: what looks names
// up is another one's, and it knows nothing of nsswitch.conf. It prints a line:
// for each family what the name has, and what a server answered.
//
//	musl NAME PORT
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void look(const char *name, const char *port, int family, const char *called)
{
	struct addrinfo hints = {.ai_family = family, .ai_socktype = SOCK_STREAM}, *all, *a;
	char text[64];
	int e = getaddrinfo(name, port, &hints, &all);
	printf("%s=", called);
	if (e) {
		printf("%s; ", gai_strerror(e));
		return;
	}
	for (a = all; a; a = a->ai_next)
		if (!getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST))
			printf("%s ", text);
	printf("; ");
	freeaddrinfo(all);
}

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *a;
	char text[512];
	int s, n, got = 0;
	if (argc != 3)
		return 2;
	printf("%s:%s: ", argv[1], argv[2]);
	look(argv[1], argv[2], AF_INET, "v4");
	look(argv[1], argv[2], AF_INET6, "v6");
	if (getaddrinfo(argv[1], argv[2], &hints, &a) || (s = socket(a->ai_family, SOCK_STREAM, 0)) < 0 || connect(s, a->ai_addr, a->ai_addrlen)) {
		puts("not connected");
		return 0;
	}
	n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n", argv[1], argv[2]);
	if (write(s, text, n) != n) {
		puts("not sent");
		return 0;
	}
	while (got < (int)sizeof text - 1 && (n = read(s, text + got, sizeof text - 1 - got)) > 0)
		got += n;
	for (n = 0; n < got; n++)
		if (text[n] < ' ')
			text[n] = ' ';
	printf("%.*s\n", got, text);
	return 0;
}
