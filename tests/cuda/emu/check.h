/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PRHS_EMU_CHECK_H
#define PRHS_EMU_CHECK_H

struct check_params {
    int *ints, *total;
    float *floats;
    const unsigned short *halves;
    int bf16;
};

#endif
