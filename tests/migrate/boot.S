/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The reset vector and the way to 64-bit mode of the migration test's guest,
 * which is its own firmware: the image is QEMU's -bios. The last 64 KiB below
 * 4 GiB are also found below 1 MiB, so the second processor, which begins at
 * the page 0xff, enters the same code.
 */
#define CR0_PE		(1 << 0)
#define CR0_PG		(1 << 31)
#define CR4_PAE		(1 << 5)
#define MSR_EFER	0xc0000080
#define EFER_LME	(1 << 8)
#define PTE_TABLE	0x003
#define PTE_HUGE	0x083

/* Page tables: an identity map of 8 GiB by 2 MiB pages. */
#define PML4		0x10000
#define PDPT		0x11000
#define PD		0x12000
#define NR_PDS		8

	.section .boot, "ax"
	.code16
	/* The second processor starts here, with cs:ip = ff00:0000. */
ap_start:
	cli
	movl	$1, %ebx
	lgdtl	%cs:(gdtr - ap_start)
	jmp	1f
bsp_start:
	cli
	xorl	%ebx, %ebx
	/* cs has the base 0xffff0000, and this section is in its last page. */
	lgdtl	%cs:(gdtr - ap_start + 0xf000)
1:	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $protected

	.code32
protected:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	testl	%ebx, %ebx
	jnz	2f

	/* The first processor copies the program to memory and clears its bss. */
	cld
	movl	$image_start, %esi
	movl	$program_start, %edi
	movl	$image_words, %ecx
	rep movsl
	movl	$bss_start, %edi
	movl	$bss_words, %ecx
	xorl	%eax, %eax
	rep stosl

	movl	$PML4, %edi
	movl	$((PD - PML4) / 4), %ecx
	rep stosl
	movl	$(PDPT | PTE_TABLE), PML4
	movl	$PDPT, %edi
	movl	$(PD | PTE_TABLE), %eax
	movl	$NR_PDS, %ecx
1:	movl	%eax, (%edi)
	addl	$0x1000, %eax
	addl	$8, %edi
	loop	1b
	movl	$PD, %edi
	movl	$PTE_HUGE, %eax
	xorl	%edx, %edx
	movl	$(NR_PDS * 512), %ecx
1:	movl	%eax, (%edi)
	movl	%edx, 4(%edi)
	addl	$0x200000, %eax
	adcl	$0, %edx
	addl	$8, %edi
	loop	1b

2:	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	/* Caches on: reset leaves CD and NW set. */
	andl	$0x9fffffff, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	ljmpl	$0x18, $long_mode

	.code64
long_mode:
	movl	$stack_top, %esp
	movl	%ebx, %eax
	shll	$14, %eax
	subl	%eax, %esp
	movl	%ebx, %edi
	movl	$guest_main, %eax
	callq	*%rax
1:	cli
	hlt
	jmp	1b

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08: code, 32 bits */
	.quad	0x00cf93000000ffff	/* 0x10: data */
	.quad	0x00af9b000000ffff	/* 0x18: code, 64 bits */
gdtr:
	.word	gdtr - gdt - 1
	.long	gdt

	.section .reset, "ax"
	.code16
	jmp	bsp_start
	.balign	16
