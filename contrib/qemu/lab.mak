# SPDX-License-Identifier: GPL-2.0
# The one machine of tests/migrate; it selects what it needs, memory hotplug among it.
CONFIG_I440FX=y
