/* SPDX-License-Identifier: Apache-2.0 */
/* A small trace for tests of programs: synth-trace FILE [SEED [with the prompts' queries]] */
#include <stdlib.h>

#include "synth.h"

int main(int argc, char **argv) {
    static const uint32_t contexts[] = { 120, 61 }, steps[] = { 16, 9 };
    synth s = { .shape = { 4, 1, 2, 4, 2, 32, 0.1767767f, 2, 0 }, .contexts = contexts, .steps = steps, .drift = 0.6f };
    if (argc < 2)
        return 2;
    s.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    s.shape.prompts = argc > 3;
    synth_write(&s, argv[1]);
    return 0;
}
