// SPDX-License-Identifier: GPL-2.0
/* Prints the frequency of this machine's TSC in kHz, in a tenth of a second, by its clock. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
	unsigned long long ns, ticks;
};

static struct moment now(void)
{
	unsigned long long before, after, least = ~0ull;
	struct moment moment = {};
	struct timespec time;
	int i;

	/* Whatever interrupts both readings makes them longer. */
	for (i = 0; i < 100; i++) {
		before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &time);
		after = __rdtsc();
		if (after - before < least) {
			least = after - before;
			moment.ns = time.tv_sec * 1000000000ull + time.tv_nsec;
			moment.ticks = before + least / 2;
		}
	}
	return moment;
}

int main(void)
{
	struct moment from = now(), to;
	struct timespec pause = { .tv_nsec = 100000000 };

	nanosleep(&pause, NULL);
	to = now();
	printf("%llu\n", (to.ticks - from.ticks) * 1000000 / (to.ns - from.ns));
	return 0;
}
