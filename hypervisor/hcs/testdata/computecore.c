/*
 * A stand-in for computecore.dll: it records what it is asked, answers as it is
 * told, and its machines are processes. It runs under Wine, for tests only.
 *
 * FAKE_HCS in the environment names a folder:
 *   calls.txt   a line for each call: the function and its argument
 *   ID.json     the description of each system, as it came
 *   script.txt  what shall go wrong; lines "FUNCTION HOW CODE [DETAIL]", HOW one of
 *                 call    the function returns CODE, in hex
 *                 wait    the operation that it begins ends with CODE
 *                 slow    the operation ends when it is cancelled
 *                 stuck   the operation ends by nothing but its waiter's patience
 *                 answer  what it returns as its document is DETAIL
 * FAKE_HCS_GUEST is the program that is started as a machine: "PROGRAM fake-guest ID DIR".
 *
 * A handle that is used after it was closed ends the process, as the real one may.
 */
#define UNICODE
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __declspec(dllexport)
#define OPERATION 0x4f504552u
#define SYSTEM 0x53595354u
#define PATHS 1024

#define E_LATE 0x80370118u /* HCS_E_OPERATION_TIMEOUT */
#define E_STATE 0x80370105u
#define E_EXIT 0x80370106u
#define E_STOPPED 0x80370110u
#define E_CANCELLED 0x80370121u
#define E_NO_FILE 0x80070002u

typedef struct {
	unsigned magic;
	HRESULT result;
	char document[512];
	HANDLE done;
	BOOL stuck;
} op;

enum state { CREATED, RUNNING, PAUSED, STOPPED };

typedef struct {
	unsigned magic;
	WCHAR id[64];
	enum state state;
	HANDLE process, ended, watcher;
	char exit[256];
	BOOL forced;
} sys;

static CRITICAL_SECTION lock; /* of all that follows */
static LONG operations, systems;
static HANDLE last; /* the machine that was started last */

BOOL WINAPI DllMain(HINSTANCE h, DWORD why, LPVOID x)
{
	(void)h, (void)x;
	if (why == DLL_PROCESS_ATTACH)
		InitializeCriticalSection(&lock);
	return TRUE;
}

static void die(const char *what)
{
	fprintf(stderr, "fake computecore: %s\n", what);
	fflush(stderr);
	TerminateProcess(GetCurrentProcess(), 99);
}

static void inFolder(WCHAR *path, const WCHAR *name)
{
	WCHAR dir[PATHS - 100];
	if (!GetEnvironmentVariableW(L"FAKE_HCS", dir, PATHS - 100))
		die("FAKE_HCS is not set");
	_snwprintf(path, PATHS, L"%ls\\%ls", dir, name);
}

static void record(const char *function, const WCHAR *argument)
{
	WCHAR path[PATHS];
	char line[4096];
	int n = snprintf(line, 256, "%s ", function);
	int m = WideCharToMultiByte(CP_UTF8, 0, argument, -1, line + n, sizeof line - n - 2, NULL, NULL);
	n += m > 0 ? m - 1 : 0;
	line[n++] = '\n';
	inFolder(path, L"calls.txt");
	EnterCriticalSection(&lock);
	HANDLE f = CreateFileW(path, FILE_APPEND_DATA, FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, OPEN_ALWAYS, 0, NULL);
	DWORD done;
	if (f == INVALID_HANDLE_VALUE || !WriteFile(f, line, n, &done, NULL))
		die("calls.txt cannot be written");
	CloseHandle(f);
	LeaveCriticalSection(&lock);
}

/* told looks up what shall go wrong with a function. */
static BOOL told(const char *function, const char *how, unsigned *code, char *detail, size_t size)
{
	WCHAR path[PATHS];
	char line[1024], f[128], h[32];
	BOOL found = FALSE;
	inFolder(path, L"script.txt");
	FILE *in = _wfopen(path, L"r");
	while (in && !found && fgets(line, sizeof line, in)) {
		int at = 0;
		unsigned c;
		if (sscanf(line, "%127s %31s %x %n", f, h, &c, &at) < 3 || strcmp(f, function) || strcmp(h, how))
			continue;
		found = TRUE;
		*code = c;
		if (detail)
			snprintf(detail, size, "%s", at ? line + at : "");
	}
	if (in)
		fclose(in);
	return found;
}

static WCHAR *answer(const char *utf8)
{
	int n = MultiByteToWideChar(CP_UTF8, 0, utf8, -1, NULL, 0);
	WCHAR *w = LocalAlloc(LMEM_FIXED, n * sizeof(WCHAR));
	MultiByteToWideChar(CP_UTF8, 0, utf8, -1, w, n);
	return w;
}

static op *operation(void *h)
{
	op *o = h;
	if (!o || o->magic != OPERATION)
		die("an operation was used that is none");
	return o;
}

static sys *compute(void *h)
{
	sys *s = h;
	if (!s || s->magic != SYSTEM)
		die("a system was used that is none");
	return s;
}

API void *WINAPI HcsCreateOperation(const void *context, void *callback)
{
	(void)context, (void)callback;
	op *o = calloc(1, sizeof *o);
	o->magic = OPERATION;
	o->done = CreateEventW(NULL, TRUE, FALSE, NULL);
	InterlockedIncrement(&operations);
	return o;
}

API void WINAPI HcsCloseOperation(void *h)
{
	op *o = operation(h);
	CloseHandle(o->done);
	memset(o, 0, sizeof *o); /* kept, so that a later use is seen */
	InterlockedDecrement(&operations);
}

static void end(op *o, HRESULT result, const char *document)
{
	o->result = result;
	snprintf(o->document, sizeof o->document, "%s", document);
	SetEvent(o->done);
}

API HRESULT WINAPI HcsCancelOperation(void *h)
{
	op *o = operation(h);
	record("HcsCancelOperation", L"");
	if (WaitForSingleObject(o->done, 0) != WAIT_OBJECT_0 && !o->stuck)
		end(o, E_CANCELLED, "");
	return S_OK;
}

API HRESULT WINAPI HcsWaitForOperationResult(void *h, DWORD ms, WCHAR **document)
{
	op *o = operation(h);
	*document = NULL;
	if (WaitForSingleObject(o->done, ms) != WAIT_OBJECT_0)
		return E_LATE;
	if (*o->document)
		*document = answer(o->document);
	return o->result;
}

/* begin does what all operations have in common. It returns TRUE where the
   function shall go on and end the operation itself. */
static BOOL begin(const char *function, const WCHAR *argument, op *o, HRESULT *result)
{
	unsigned code;
	char text[512], document[600];
	record(function, argument);
	*result = S_OK;
	if (told(function, "call", &code, NULL, 0)) {
		*result = code;
		return FALSE;
	}
	if (told(function, "wait", &code, text, sizeof text)) {
		text[strcspn(text, "\r\n")] = 0;
		snprintf(document, sizeof document, "{\"Error\":%d,\"ErrorMessage\":\"%s\"}", (int)code, text);
		end(o, code, *text ? document : "");
		return FALSE;
	}
	if (told(function, "stuck", &code, NULL, 0)) {
		o->stuck = TRUE;
		return FALSE;
	}
	if (told(function, "slow", &code, NULL, 0))
		return FALSE;
	return TRUE;
}

API HRESULT WINAPI HcsCreateComputeSystem(const WCHAR *id, const WCHAR *document, void *h, const void *descriptor, void **system)
{
	WCHAR name[128], path[PATHS];
	op *o = operation(h);
	HRESULT result;
	(void)descriptor;
	*system = NULL;
	_snwprintf(name, 128, L"%ls.json", id);
	inFolder(path, name);
	int n = WideCharToMultiByte(CP_UTF8, 0, document, -1, NULL, 0, NULL, NULL);
	char *utf8 = malloc(n);
	WideCharToMultiByte(CP_UTF8, 0, document, -1, utf8, n, NULL, NULL);
	FILE *out = _wfopen(path, L"wb");
	if (!out || fwrite(utf8, 1, n - 1, out) != (size_t)n - 1 || fclose(out))
		die("the description cannot be written");
	free(utf8);
	if (!begin("HcsCreateComputeSystem", id, o, &result))
		return result;
	sys *s = calloc(1, sizeof *s);
	s->magic = SYSTEM;
	_snwprintf(s->id, 64, L"%ls", id);
	s->ended = CreateEventW(NULL, TRUE, FALSE, NULL);
	InterlockedIncrement(&systems);
	*system = s;
	end(o, S_OK, "");
	return S_OK;
}

static DWORD WINAPI watch(void *h)
{
	sys *s = h;
	DWORD status;
	WaitForSingleObject(s->process, INFINITE);
	GetExitCodeProcess(s->process, &status);
	EnterCriticalSection(&lock);
	s->state = STOPPED;
	snprintf(s->exit, sizeof s->exit, "{\"Status\":%d,\"ExitType\":\"%s\"}",
		status == 0 || s->forced ? 0 : (int)E_EXIT, s->forced ? "ForcedExit" : status == 0 ? "Reboot" : "UnexpectedExit");
	SetEvent(s->ended);
	LeaveCriticalSection(&lock);
	return 0;
}

static HRESULT launch(sys *s)
{
	WCHAR program[PATHS], dir[PATHS], line[3 * PATHS];
	STARTUPINFOW start = { .cb = sizeof start };
	PROCESS_INFORMATION made;
	GetEnvironmentVariableW(L"FAKE_HCS_GUEST", program, PATHS);
	GetEnvironmentVariableW(L"FAKE_HCS", dir, PATHS);
	_snwprintf(line, 3 * PATHS, L"\"%ls\" fake-guest %ls \"%ls\"", program, s->id, dir);
	if (!CreateProcessW(program, line, NULL, NULL, FALSE, 0, NULL, NULL, &start, &made))
		return HRESULT_FROM_WIN32(GetLastError());
	CloseHandle(made.hThread);
	s->process = last = made.hProcess;
	s->state = RUNNING;
	s->watcher = CreateThread(NULL, 0, watch, s, 0, NULL);
	return S_OK;
}

API HRESULT WINAPI HcsStartComputeSystem(void *system, void *h, const WCHAR *options)
{
	sys *s = compute(system);
	op *o = operation(h);
	HRESULT result;
	(void)options;
	if (!begin("HcsStartComputeSystem", s->id, o, &result))
		return result;
	EnterCriticalSection(&lock);
	result = s->state == CREATED ? launch(s) : (HRESULT)E_STATE;
	LeaveCriticalSection(&lock);
	end(o, result, "");
	return S_OK;
}

API HRESULT WINAPI HcsTerminateComputeSystem(void *system, void *h, const WCHAR *options)
{
	sys *s = compute(system);
	op *o = operation(h);
	HRESULT result;
	(void)options;
	if (!begin("HcsTerminateComputeSystem", s->id, o, &result))
		return result;
	EnterCriticalSection(&lock);
	HRESULT how = S_OK;
	HANDLE process = NULL;
	if (s->state == STOPPED)
		how = E_STOPPED;
	else if (s->process) {
		s->forced = TRUE;
		process = s->process;
	} else {
		s->state = STOPPED;
		strcpy(s->exit, "{\"Status\":0,\"ExitType\":\"ForcedExit\"}");
		SetEvent(s->ended);
	}
	LeaveCriticalSection(&lock);
	if (process) {
		TerminateProcess(process, 1);
		WaitForSingleObject(s->ended, INFINITE);
	}
	end(o, how, "");
	return S_OK;
}

/* halt stops a machine's processor, or lets it go on. */
static HRESULT halt(const char *function, const char *routine, enum state from, enum state to, sys *s, op *o)
{
	HRESULT result;
	if (!begin(function, s->id, o, &result))
		return result;
	LONG(WINAPI * nt)(HANDLE) = (void *)GetProcAddress(GetModuleHandleW(L"ntdll.dll"), routine);
	EnterCriticalSection(&lock);
	result = E_STATE;
	if (s->state == from && nt(s->process) == 0) {
		s->state = to;
		result = S_OK;
	}
	LeaveCriticalSection(&lock);
	end(o, result, "");
	return S_OK;
}

API HRESULT WINAPI HcsPauseComputeSystem(void *system, void *h, const WCHAR *options)
{
	(void)options;
	return halt("HcsPauseComputeSystem", "NtSuspendProcess", RUNNING, PAUSED, compute(system), operation(h));
}

API HRESULT WINAPI HcsResumeComputeSystem(void *system, void *h, const WCHAR *options)
{
	(void)options;
	return halt("HcsResumeComputeSystem", "NtResumeProcess", PAUSED, RUNNING, compute(system), operation(h));
}

API HRESULT WINAPI HcsGetComputeSystemProperties(void *system, void *h, const WCHAR *query)
{
	sys *s = compute(system);
	op *o = operation(h);
	HRESULT result;
	unsigned code;
	char document[512];
	(void)query;
	if (!begin("HcsGetComputeSystemProperties", s->id, o, &result))
		return result;
	if (!told("HcsGetComputeSystemProperties", "answer", &code, document, sizeof document))
		snprintf(document, sizeof document, "{\"Id\":\"%ls\",\"SystemType\":\"VirtualMachine\",\"RuntimeId\":\"%ls\"}", s->id, s->id);
	end(o, S_OK, document);
	return S_OK;
}

API HRESULT WINAPI HcsWaitForComputeSystemExit(void *system, DWORD ms, WCHAR **document)
{
	sys *s = compute(system);
	unsigned code;
	char text[512];
	record("HcsWaitForComputeSystemExit", s->id);
	*document = NULL;
	if (WaitForSingleObject(s->ended, ms) != WAIT_OBJECT_0)
		return E_LATE;
	if (told("HcsWaitForComputeSystemExit", "call", &code, NULL, 0))
		return code;
	if (!told("HcsWaitForComputeSystemExit", "answer", &code, text, sizeof text))
		strcpy(text, s->exit);
	*document = answer(text);
	return S_OK;
}

API void WINAPI HcsCloseComputeSystem(void *system)
{
	sys *s = compute(system);
	record("HcsCloseComputeSystem", s->id);
	if (s->process) {
		s->forced = TRUE; /* ShouldTerminateOnLastHandleClosed */
		TerminateProcess(s->process, 1);
		WaitForSingleObject(s->watcher, INFINITE);
		EnterCriticalSection(&lock);
		if (last == s->process)
			last = NULL;
		LeaveCriticalSection(&lock);
		CloseHandle(s->watcher);
		CloseHandle(s->process);
	}
	CloseHandle(s->ended);
	memset(s, 0, sizeof *s);
	InterlockedDecrement(&systems);
}

static HRESULT file(const char *function, const WCHAR *path)
{
	unsigned code;
	record(function, path);
	if (told(function, "call", &code, NULL, 0))
		return code;
	return GetFileAttributesW(path) == INVALID_FILE_ATTRIBUTES ? (HRESULT)E_NO_FILE : S_OK;
}

API HRESULT WINAPI HcsGrantVmAccess(const WCHAR *id, const WCHAR *path)
{
	(void)id;
	return file("HcsGrantVmAccess", path);
}

API HRESULT WINAPI HcsRevokeVmAccess(const WCHAR *id, const WCHAR *path)
{
	(void)id;
	return file("HcsRevokeVmAccess", path);
}

API HRESULT WINAPI HcsGetServiceProperties(const WCHAR *query, WCHAR **document)
{
	unsigned code;
	char text[512];
	record("HcsGetServiceProperties", query);
	*document = NULL;
	if (told("HcsGetServiceProperties", "call", &code, NULL, 0))
		return code;
	if (!told("HcsGetServiceProperties", "answer", &code, text, sizeof text))
		strcpy(text, "{\"Properties\":[{\"SupportedSchemaVersions\":[{\"Major\":2,\"Minor\":7}]}]}");
	*document = answer(text);
	return S_OK;
}

/* FakeOpen is how many operations and systems are open; for tests. */
API void WINAPI FakeOpen(LONG *o, LONG *s)
{
	*o = operations;
	*s = systems;
}

/* FakeMurder ends the machine that was started last from outside. */
API BOOL WINAPI FakeMurder(void)
{
	EnterCriticalSection(&lock);
	BOOL done = last && TerminateProcess(last, 7);
	LeaveCriticalSection(&lock);
	return done;
}
