#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the machine that the package of modules is installed on, where its kernel cannot
# mount the lab's root (no 9p, as in the flavour for clouds): the test is on the image.
# shellcheck source=tests/deb/said.sh
. /sbin/check-said
perf_test()
{
	/sbin/dirty_log_perf_test -v 1 -b 32M -i 2 -s anonymous_hugetlb_2mb >/tmp/test 2>&1
	status=$?
	cat /tmp/test >/dev/console
	return $status
}

mount_all
echo 100 >/proc/sys/vm/nr_hugepages
say "release=$(uname -r)"
modprobe kvm_amd
say "stock_engine=$(engine)"
perf_test
say "stock_test=$?"
messages >/tmp/before

dpkg -i /root/modules.deb >/dev/console 2>&1
say "installed=$?"
exchange
perf_test
say "test=$?"

go_back
perf_test
say "back_test=$?"
messages >/tmp/after
say_messages /tmp/before /tmp/after
finish
