// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU plugin that counts what a stretch of guest code does: instructions,
 * atomic read-modify-writes, acquisitions of rwlocks and how long they are held.
 * In KVM's ioctls the only rwlock is mmu_lock.
 *
 *   -plugin libcount.so,out=FILE,read_lock=ADDR,read_unlock=ADDR,
 *           write_lock=ADDR,write_unlock=ADDR[,profile=FILE[,only=N]]
 *
 * The addresses are those of the kernel's _raw_{read,write}_{lock,unlock}; the
 * guest is booted with nokaslr and one processor. mmu_bench brackets each
 * stretch by two marked no-ops, and each makes a line of FILE:
 *
 *   INSTRUCTIONS RMWS READ-LOCKS WRITE-LOCKS LONGEST-READ LONGEST-WRITE
 *
 * the last two in instructions. The profile has a line "ADDRESS INSTRUCTIONS" for
 * each block of code that ran in any of the stretches, or in the Nth.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's plugin interface, version 7, that is used here. */
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*exec_cb)(unsigned int cpu, void *data);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t n);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t len);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
					   void (*cb)(struct qemu_plugin_tb *tb, void *data),
					   void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, exec_cb cb, int flags,
					  void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, exec_cb cb, int flags,
					    void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(void *data), void *data);

EXPORT int qemu_plugin_version = 7;

#define KERNEL		(1ull << 63)
#define MARK		0x4b560000u

enum { READ, WRITE };

/* A block of translated code. Never freed: the profile needs all of them. */
struct block {
	uint64_t addr, insns, ran;
	struct block *next;
};

static struct {
	uint64_t lock[2], unlock[2];
} addr;

static FILE *out, *profile;
static struct block *blocks;

static int armed;
static long stretch, only;
static uint64_t insns, rmws, acquired[2], longest[2], since[2];

static void on_block(unsigned int cpu, void *data)
{
	struct block *block = data;

	(void)cpu;
	if (armed) {
		insns += block->insns;
		if (!only || only == stretch)
			block->ran += block->insns;
	}
}

static void on_rmw(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	rmws += armed;
}

static void on_lock(unsigned int cpu, void *data)
{
	intptr_t mode = (intptr_t)data;

	(void)cpu;
	acquired[mode] += armed;
	since[mode] = insns;
}

static void on_unlock(unsigned int cpu, void *data)
{
	intptr_t mode = (intptr_t)data;

	(void)cpu;
	if (armed && insns - since[mode] > longest[mode])
		longest[mode] = insns - since[mode];
}

static void on_mark(unsigned int cpu, void *data)
{
	(void)cpu;
	armed = (intptr_t)data == 1;
	if (armed) {
		stretch++;
		insns = 0;
		rmws = 0;
		memset(acquired, 0, sizeof(acquired));
		memset(longest, 0, sizeof(longest));
		memset(since, 0, sizeof(since));
		return;
	}
	fprintf(out, "%llu %llu %llu %llu %llu %llu\n", (unsigned long long)insns,
		(unsigned long long)rmws, (unsigned long long)acquired[READ],
		(unsigned long long)acquired[WRITE], (unsigned long long)longest[READ],
		(unsigned long long)longest[WRITE]);
	fflush(out);
}

/* An atomic read-modify-write: a LOCK prefix, or XCHG with memory. */
static int is_rmw(const uint8_t *code, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++) {
		switch (code[i]) {
		case 0xf0:
			return 1;
		case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66:
		case 0x40 ... 0x4f:
			continue;
		case 0x86: case 0x87:
			return i + 1 < len && code[i + 1] >> 6 != 3;
		default:
			return 0;
		}
	}
	return 0;
}

static void on_execution(struct qemu_plugin_insn *insn, exec_cb cb, intptr_t data)
{
	qemu_plugin_register_vcpu_insn_exec_cb(insn, cb, 0, (void *)data);
}

static void on_translate(struct qemu_plugin_tb *tb, void *data)
{
	size_t n = qemu_plugin_tb_n_insns(tb), i;
	struct block *block = calloc(1, sizeof(*block));

	(void)data;
	if (!block)
		abort();
	block->addr = qemu_plugin_tb_vaddr(tb);
	block->insns = n;
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, 0, block);

	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t at = qemu_plugin_insn_vaddr(insn);
		uint8_t code[16] = {};
		size_t len = qemu_plugin_insn_data(insn, code, sizeof(code));
		uint32_t imm;
		intptr_t mode;

		memcpy(&imm, code + 3, sizeof(imm));
		if (!(at & KERNEL)) {
			if (len == 7 && !memcmp(code, "\x0f\x1f\x80", 3) && imm >> 16 == MARK >> 16)
				on_execution(insn, on_mark, imm & 0xffff);
			continue;
		}
		for (mode = READ; mode <= WRITE; mode++) {
			if (at == addr.lock[mode])
				on_execution(insn, on_lock, mode);
			if (at == addr.unlock[mode])
				on_execution(insn, on_unlock, mode);
		}
		if (is_rmw(code, len))
			on_execution(insn, on_rmw, 0);
	}
}

static void at_exit(void *data)
{
	struct block *block;

	(void)data;
	for (block = blocks; profile && block; block = block->next)
		if (block->ran)
			fprintf(profile, "%llx %llu\n", (unsigned long long)block->addr,
				(unsigned long long)block->ran);
	if (profile)
		fclose(profile);
	fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t *addr;
	} addresses[] = {
		{ "read_lock=", &addr.lock[READ] },
		{ "read_unlock=", &addr.unlock[READ] },
		{ "write_lock=", &addr.lock[WRITE] },
		{ "write_unlock=", &addr.unlock[WRITE] },
	};
	size_t j;
	int i;

	(void)info;
	for (i = 0; i < argc; i++) {
		for (j = 0; j < sizeof(addresses) / sizeof(addresses[0]); j++) {
			size_t len = strlen(addresses[j].name);

			if (!strncmp(argv[i], addresses[j].name, len))
				*addresses[j].addr = strtoull(argv[i] + len, NULL, 16);
		}
		if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
		if (!strncmp(argv[i], "only=", 5))
			only = atol(argv[i] + 5);
		if (!strncmp(argv[i], "profile=", 8))
			profile = fopen(argv[i] + 8, "w");
	}
	for (j = 0; j < sizeof(addresses) / sizeof(addresses[0]); j++)
		if (!*addresses[j].addr) {
			fprintf(stderr, "error: count: no %s\n", addresses[j].name);
			return -1;
		}
	if (!out) {
		perror("error: count: out=");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate, NULL);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
