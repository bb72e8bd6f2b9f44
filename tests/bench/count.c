// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU plugin that counts what a thread does in a stretch of guest code:
 * instructions, atomic read-modify-writes, acquisitions of rwlocks and how long
 * they are held. In KVM's ioctls the only rwlock is mmu_lock.
 *
 *   -plugin libcount.so,out=FILE,_raw_read_lock=ADDR,_raw_read_unlock=ADDR,
 *           _raw_write_lock=ADDR,_raw_write_unlock=ADDR,__switch_to=ADDR
 *           [,functions=FILE][,profile=FILE[,only=N]]
 *
 * The addresses are those of the kernel's functions; the guest is booted with
 * nokaslr and one processor. mmu_bench brackets each stretch by two marked
 * no-ops. What other threads do while this one sleeps is not counted; interrupts
 * are. Each stretch makes a line of FILE:
 *
 *   INSTRUCTIONS RMWS READ-LOCKS WRITE-LOCKS LONGEST-READ LONGEST-WRITE
 *   [CALLS INSTRUCTIONS]...
 *
 * the two longest in instructions. The pairs are calls of the functions whose
 * addresses stand in the file functions=FILE, hexadecimal and one a line, and the
 * instructions from entering them to leaving them, whichever thread they interrupt;
 * what one of them calls counts for it alone. A third no-op has the file read, because
 * modules are at an address only once they are loaded. The profile has a line
 * "ADDRESS INSTRUCTIONS" for each block of code that ran in any of the stretches, or in
 * the Nth.
 */
#include <stdbool.h>
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
void qemu_plugin_register_vcpu_init_cb(plugin_id id, exec_cb cb, void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(void *data), void *data);

#define READS_REGISTERS	1

/* What glib calls GArray, of struct reg, and GByteArray. */
struct glib_array {
	void *data;
	unsigned int len;
};

struct reg {
	struct qemu_plugin_register *handle;
	const char *name, *feature;
	bool is_readonly;
};

struct glib_array *qemu_plugin_get_registers(void);
bool qemu_plugin_read_register(struct qemu_plugin_register *handle, struct glib_array *bytes);
/* QEMU has them of glib. */
struct glib_array *g_byte_array_new(void);
struct glib_array *g_byte_array_set_size(struct glib_array *bytes, unsigned int len);

EXPORT int qemu_plugin_version = 7;

#define KERNEL		(1ull << 63)
#define MARK		0x4b560000u

#define MAX_FUNCTIONS	5

enum { READ, WRITE };

/* What the last instruction of a block does to the depth of calls. */
enum flow { OTHER, CALL, RETURN };

/* A block of translated code. Never freed: the profile needs all of them. */
struct block {
	uint64_t addr, insns, ran;
	enum flow flow;
	struct block *next;
};

struct function {
	uint64_t addr, calls, insns;
};

static struct {
	uint64_t lock[2], unlock[2], switch_to;
} addr;

static FILE *out, *profile;
static const char *functions_file;
static struct function functions[MAX_FUNCTIONS];
static int nr_functions;
/* The one that runs, since when, and how many of its calls have not returned. */
static struct function *running;
static uint64_t since_call;
static int depth;
static struct block *blocks;

/* Whether there is a stretch, and whether its thread runs. */
static bool armed, counting;
/* That thread's task_struct, once it has given the processor away. */
static uint64_t self;
static struct qemu_plugin_register *arguments[2];
static struct glib_array *bytes;
static long stretch, only;
static uint64_t insns, all_insns, rmws, acquired[2], longest[2], since[2];

/* all_insns, those of all threads, has those of the block already. */
static void follow(const struct block *block)
{
	int i;

	for (i = 0; !running && i < nr_functions; i++) {
		if (block->addr == functions[i].addr) {
			running = &functions[i];
			running->calls++;
			since_call = all_insns - block->insns;
			depth = 0;
		}
	}
	if (running && block->flow == CALL) {
		depth++;
	} else if (running && block->flow == RETURN && !depth--) {
		running->insns += all_insns - since_call;
		running = NULL;
	}
}

static void on_block(unsigned int cpu, void *data)
{
	struct block *block = data;

	(void)cpu;
	if (counting) {
		insns += block->insns;
		if (!only || only == stretch)
			block->ran += block->insns;
	}
	if (armed) {
		all_insns += block->insns;
		follow(block);
	}
}

static void on_rmw(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	rmws += counting;
}

static void on_lock(unsigned int cpu, void *data)
{
	intptr_t mode = (intptr_t)data;

	(void)cpu;
	acquired[mode] += counting;
	since[mode] = insns;
}

static void on_unlock(unsigned int cpu, void *data)
{
	intptr_t mode = (intptr_t)data;

	(void)cpu;
	if (counting && insns - since[mode] > longest[mode])
		longest[mode] = insns - since[mode];
}

static uint64_t argument(int nr)
{
	uint64_t value;

	g_byte_array_set_size(bytes, 0);
	if (!arguments[nr] || !qemu_plugin_read_register(arguments[nr], bytes) ||
	    bytes->len != sizeof(value)) {
		fprintf(stderr, "error: count: no register of argument %d\n", nr);
		exit(1);
	}
	memcpy(&value, bytes->data, sizeof(value));
	return value;
}

/* __switch_to(from, to). The first one in a stretch is from the thread that began it. */
static void on_switch(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	if (!armed)
		return;
	if (!self)
		self = argument(0);
	counting = argument(1) == self;
}

static void on_cpu(unsigned int cpu, void *data)
{
	struct glib_array *regs = qemu_plugin_get_registers();
	const struct reg *reg = regs->data;
	unsigned int i;

	(void)cpu;
	(void)data;
	for (i = 0; i < regs->len; i++) {
		if (!strcmp(reg[i].name, "rdi"))
			arguments[0] = reg[i].handle;
		if (!strcmp(reg[i].name, "rsi"))
			arguments[1] = reg[i].handle;
	}
	bytes = g_byte_array_new();
}

static void read_functions(void)
{
	FILE *f = functions_file ? fopen(functions_file, "r") : NULL;
	unsigned long long at;

	memset(functions, 0, sizeof(functions));
	nr_functions = 0;
	while (f && nr_functions < MAX_FUNCTIONS && fscanf(f, "%llx", &at) == 1)
		functions[nr_functions++].addr = at;
	if (f)
		fclose(f);
}

static void on_mark(unsigned int cpu, void *data)
{
	int i;

	(void)cpu;
	if ((intptr_t)data == 3) {
		read_functions();
		return;
	}
	armed = (intptr_t)data == 1;
	counting = armed;
	if (armed) {
		self = 0;
		stretch++;
		insns = 0;
		rmws = 0;
		memset(acquired, 0, sizeof(acquired));
		memset(longest, 0, sizeof(longest));
		memset(since, 0, sizeof(since));
		for (i = 0; i < nr_functions; i++) {
			functions[i].calls = 0;
			functions[i].insns = 0;
		}
		running = NULL;
		return;
	}
	fprintf(out, "%llu %llu %llu %llu %llu %llu", (unsigned long long)insns,
		(unsigned long long)rmws, (unsigned long long)acquired[READ],
		(unsigned long long)acquired[WRITE], (unsigned long long)longest[READ],
		(unsigned long long)longest[WRITE]);
	for (i = 0; i < nr_functions; i++)
		fprintf(out, " %llu %llu", (unsigned long long)functions[i].calls,
			(unsigned long long)functions[i].insns);
	fputc('\n', out);
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

/* Near calls and returns, as the kernel has them. */
static enum flow flow_of(const uint8_t *code, size_t len)
{
	size_t i = 0;

	while (i < len && (code[i] == 0x2e || code[i] == 0x3e || (code[i] & 0xf0) == 0x40))
		i++;
	if (i == len)
		return OTHER;
	if (code[i] == 0xe8 || (code[i] == 0xff && i + 1 < len && (code[i + 1] & 0x38) == 0x10))
		return CALL;
	return code[i] == 0xc3 || code[i] == 0xc2 ? RETURN : OTHER;
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

		if (i == n - 1)
			block->flow = flow_of(code, len);
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
		if (at == addr.switch_to)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_switch, READS_REGISTERS,
							       NULL);
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
		{ "_raw_read_lock=", &addr.lock[READ] },
		{ "_raw_read_unlock=", &addr.unlock[READ] },
		{ "_raw_write_lock=", &addr.lock[WRITE] },
		{ "_raw_write_unlock=", &addr.unlock[WRITE] },
		{ "__switch_to=", &addr.switch_to },
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
		if (!strncmp(argv[i], "functions=", 10))
			functions_file = strdup(argv[i] + 10);
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
	qemu_plugin_register_vcpu_init_cb(id, on_cpu, NULL);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate, NULL);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
