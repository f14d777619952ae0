/* Wine 8 has no bcryptprimitives.dll, of which a Go program needs one function to start. */
#include <windows.h>
#include <ntsecapi.h>
#include <stdlib.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n)
{
	while (n > 0) {
		ULONG part = n > 0x10000000 ? 0x10000000 : (ULONG)n;
		if (!RtlGenRandom(p, part))
			abort();
		p += part;
		n -= part;
	}
	return TRUE;
}
