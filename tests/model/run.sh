#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make model': a simulation of migrations on machines that nobody here has.
#   run.sh                     the tests, then the tables
#   run.sh FILE.md FILE.svg    writes them, too
#   run.sh test                the tests alone, as TAP
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
enter_root "$@"

here=$TOP/tests/model
if [[ ${1:-} = test ]]; then
	exec python3 -B "$here/test.py"
fi
python3 -B "$here/test.py" >&2
exec python3 -B "$here/report.py" "$@"
