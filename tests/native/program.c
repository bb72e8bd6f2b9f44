// SPDX-License-Identifier: GPL-2.0
/* The process that the kernel's code runs in: memory, errors, figures. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "program.h"

const char * const mmu_names[] = { [NATIVE_C] = "C", [NATIVE_RUST] = "Rust" };

void native_trap(const char *what)
{
	errx(1, "%s", what);
}

/* BUG() and WARN() of the kernel's code are illegal instructions here. */
static void fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	fprintf(stderr, "%s: %s at instruction %#llx, address %p: see llvm-addr2line\n",
		program_invocation_short_name, sig == SIGILL ? "BUG or WARN" : "bad memory access",
		(unsigned long long)uc->uc_mcontext.gregs[REG_RIP], info->si_addr);
	_exit(1);
}

/* Per-CPU data is at its own address, if the base is 0, as it is unless somebody sets it. */
static void check_gs(void)
{
	unsigned long base = 1;

	if (syscall(SYS_arch_prctl, ARCH_GET_GS, &base) || base)
		errx(1, "the GS base is %#lx, not 0", base);
}

bool program_option(struct program_options *options, int opt)
{
	if (opt == 'g')
		options->huge_pages = strtoul(optarg, NULL, 0) * 512;
	else if (opt == 'r')
		options->rounds = atoi(optarg);
	else if (opt == 'j')
		options->json = optarg;
	else
		return false;
	return true;
}

void program_check_options(const struct program_options *options)
{
	if (!options->huge_pages || options->huge_pages > 1024 * 512 ||
	    options->rounds < 1 || options->rounds > MAX_ROUNDS)
		errx(1, "1 to 1024 GiB, 1 to %d rounds", MAX_ROUNDS);
}

void program_init(void)
{
	struct sigaction action = { .sa_sigaction = fault, .sa_flags = SA_SIGINFO };

	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	check_gs();
}

/* Memory that is all there, in huge pages where the host has them, as in the kernel. */
void *reserve(size_t bytes, int populate)
{
	const size_t align = 2 << 20;
	char *at;

	at = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		err(1, "mmap of %zu bytes", bytes);
	at += -(unsigned long)at % align;
	madvise(at, bytes, MADV_HUGEPAGE);
	if (populate)
		memset(at, 0, bytes);
	return at;
}

void check(enum native_mmu mmu, int state, const char *when, const char *what)
{
	unsigned long where;
	const char *wrong = native_check(mmu, state, &where);

	if (wrong)
		errx(1, "%s, %s '%s' at huge page %lu: %s", mmu_names[mmu], when, what, where,
		     wrong);
}

void create_vms(unsigned long huge_pages)
{
	struct native_memory memory;

	native_measure(huge_pages, &memory);
	memory.tables = reserve(memory.tables_bytes, 1);
	memory.headers = reserve(memory.headers_bytes, 1);
	memory.struct_pages = reserve(memory.struct_pages_bytes, 0);
	for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
		memory.bitmap[mmu] = reserve(memory.bitmap_bytes, 1);
	memory.written = reserve(memory.written_bytes, 0);
	memory.copied = reserve(memory.written_bytes, 0);
	memory.noted = reserve(memory.bitmap_bytes, 0);
	native_create(huge_pages, &memory);

	for (int mmu = 0; mmu < NATIVE_MMUS; mmu++)
		check(mmu, NATIVE_W | NATIVE_D, "after", "map");
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double quantile(const double *values, int n, int quarters)
{
	double sorted[MAX_ROUNDS];
	int at = (n - 1) * quarters, rest = at % 4;

	memcpy(sorted, values, n * sizeof(*values));
	qsort(sorted, n, sizeof(*sorted), compare);
	at /= 4;
	return rest ? sorted[at] + (sorted[at + 1] - sorted[at]) * rest / 4 : sorted[at];
}
