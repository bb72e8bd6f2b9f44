/* SPDX-License-Identifier: GPL-2.0 */
/* What the programs of this directory share: they run the kernel's code as a process. */
#ifndef TESTS_NATIVE_PROGRAM_H
#define TESTS_NATIVE_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>

#include "native.h"

#define MAX_ROUNDS	1000

extern const char * const mmu_names[NATIVE_MMUS];

/* What all programs can be told. */
struct program_options {
	unsigned long huge_pages;
	int rounds;
	const char *json;
};

#define PROGRAM_OPTIONS	"g:r:j:"

/* Takes one of PROGRAM_OPTIONS from getopt(); false if it is another. */
bool program_option(struct program_options *options, int opt);
/* Ends the program if they make no VM, or no table. */
void program_check_options(const struct program_options *options);
/* Signals, and the GS base of the first thread. Errors end the program from here on. */
void program_init(void);
/* Memory that is all there if @populate, in huge pages where the host has them. */
void *reserve(size_t bytes, int populate);
/* All that @memory names, for slots of @huge_pages; and the VMs in it, whole and mapped. */
void create_vms(unsigned long huge_pages);
/* Ends the program if the VM is not in @state. */
void check(enum native_mmu mmu, int state, const char *when, const char *what);
/* Of the first @n, which it does not sort. */
double quantile(const double *values, int n, int quarters);

#endif /* TESTS_NATIVE_PROGRAM_H */
