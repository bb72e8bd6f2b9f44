/* SPDX-License-Identifier: GPL-2.0 */
/* Files of tracefs, and of others that are written like them; and the events of a trace. */
#ifndef SELFTEST_KVM_TRACEFS_H
#define SELFTEST_KVM_TRACEFS_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "test_util.h"

#define TRACEFS		"/sys/kernel/tracing"

static inline bool __write_file(const char *path, int flags, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags);
	size_t left = strlen(text);
	ssize_t ret;

	if (fd < 0)
		return false;
	/* A list is taken one word at a time. */
	for (ret = 1; left && ret > 0; left -= ret, text += ret) {
		ret = write(fd, text, left);
		if (ret < 0)
			break;
	}
	close(fd);
	return !left;
}

/* Whether there is such a file, and it has taken all of @text.  What it had before is lost. */
static inline bool write_file(const char *path, const char *text)
{
	return __write_file(path, O_TRUNC, text);
}

static inline bool append_file(const char *path, const char *text)
{
	return __write_file(path, O_APPEND, text);
}

static inline FILE *open_trace(const char *path)
{
	FILE *trace = fopen(path, "re");

	TEST_ASSERT(trace, "Cannot read %s", path);
	return trace;
}

struct trace_event {
	char line[512];
	/* The name of the event and what follows it; of function tracing, the function. */
	char *what;
	/* By the clock of the trace, if that counts in seconds ("mono"). */
	u64 ns;
};

/* Reads the next event; false if there is none. */
static inline bool next_event(FILE *trace, struct trace_event *event)
{
	u64 sec, usec;
	char *stamp;

	while (fgets(event->line, sizeof(event->line), trace)) {
		event->what = strstr(event->line, ": ");
		if (event->line[0] == '#' || !event->what)
			continue;
		*event->what = '\0';
		event->what += 2;
		stamp = strrchr(event->line, ' ');
		if (!stamp || sscanf(stamp, "%lu.%lu", &sec, &usec) != 2)
			continue;
		event->ns = sec * 1000000000ull + usec * 1000;
		return true;
	}
	return false;
}

/* How many lines of a trace have @text. */
static inline unsigned int count_in_trace(const char *path, const char *text)
{
	FILE *trace = open_trace(path);
	unsigned int count = 0;
	char line[512];

	while (fgets(line, sizeof(line), trace))
		count += !!strstr(line, text);
	fclose(trace);
	return count;
}

#endif /* SELFTEST_KVM_TRACEFS_H */
