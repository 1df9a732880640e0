#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: no-device.sh PRHS-TESTS, with OCL_ICD_VENDORS naming no driver: opening must fail with the documented status, and cpu work.
"$1" --backend opencl --filter policy/ >"${TMPDIR:-/tmp}/no-device.$$" 2>&1
status=$?
cat "${TMPDIR:-/tmp}/no-device.$$"
grep -q "PRHS_ERR_NO_DEVICE" "${TMPDIR:-/tmp}/no-device.$$" || { rm -f "${TMPDIR:-/tmp}/no-device.$$"; echo "no PRHS_ERR_NO_DEVICE"; exit 1; }
rm -f "${TMPDIR:-/tmp}/no-device.$$"
[ "$status" = 77 ] || { echo "exit status $status instead of 77"; exit 1; }
exec "$1" --backend cpu --filter policy/
