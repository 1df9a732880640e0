// SPDX-License-Identifier: Apache-2.0
// The emulator's own test: kernels of check.cu against plain loops; kernels that break a rule fail with a report.
#include "check.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "emu.h"

static int failures;

static void expect(bool good, const char *what, int at)
{
    if (good)
        return;
    printf("FAIL %s (%d)\n", what, at);
    failures++;
}

static bool launch(const char *name, unsigned grid, unsigned block, size_t dynamic, const check_params &p)
{
    const emu_kernel *k = emu_find(name);
    if (!k) {
        printf("FAIL no kernel %s\n", name);
        exit(1);
    }
    return emu_launch(k, grid, block, dynamic, &p, false);
}

static void shuffles()
{
    const int blocks = 5;
    std::vector<int> out(blocks * 64 * 16), total(3);
    check_params p = { out.data(), total.data(), nullptr, nullptr, 0 };
    expect(launch("check_shuffles", blocks, 64, 0, p), "check_shuffles runs", 0);
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < 64; t++) {
            const int *o = &out[(size_t)(b * 64 + t) * 16];
            const int lane = t & 31, base = t & 32;
            const auto x = [](int i) { return i * 7 + 3; };
            const int want[16] = {
                x(base + 5), x(t ^ 9), x(lane < 3 ? t : t - 3), x(lane > 28 ? t : t + 3), x((t & ~7) + 5), x(t ^ 1), 0x49249249, 5,
                x(base + 31) - 100, x(base) - 100, 32 * x(base) + 7 * 496, lane < 16 ? x(t ^ 2) : 16, 63 - t, x(t ^ 16), 310408,
                b * 1000 + blocks * 100 + 64
            };
            for (int i = 0; i < 16; i++)
                expect(o[i] == want[i], "shuffles, value", i);
        }
    expect(total[0] == 64 * blocks && total[1] == 63 && total[2] == 255, "atomics", total[0]);
}

static void product(int bf16)
{
    std::vector<unsigned short> x(384);
    std::vector<float> value(384), out(256);
    for (int i = 0; i < 384; i++) {
        const int v = (i * 37 + 11) % 23 - 11; // exact in both types: sign, exponent, three bits
        const float f = (float)v;
        value[i] = f;
        unsigned u;
        memcpy(&u, &f, 4);
        x[i] = (unsigned short)(bf16 ? u >> 16 : v == 0 ? 0 : (u >> 16 & 0x8000) | (((u & 0x7fffffff) - 0x38000000) >> 13));
    }
    check_params p = { nullptr, nullptr, out.data(), x.data(), bf16 };
    expect(launch("check_product", 1, 32, 1024, p), "check_product runs", bf16);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float c = 1.0f;
            for (int k = 0; k < 16; k++)
                c += value[i * 16 + k] * value[256 + k * 8 + j];
            expect(out[i * 8 + j] == c && out[128 + i * 8 + j] == c, "product", i * 8 + j);
        }
}

int main(int argc, char **)
{
    shuffles();
    product(0);
    product(1);
    int bad = 0, dirty[64 * 32] = {};
    check_params p = { dirty, &bad, nullptr, nullptr, 0 };
    expect(launch("check_halves", 4, 128, 0, p) && bad == 0, "half conversions", bad);
    expect(launch("check_dirty", 1, 32, 32, p), "check_dirty runs", 0);
    for (int i = 0; i < 32; i++)
        expect(!dirty[i], "shared memory starts poisoned", i);
    const char *const wrong[] = { "check_wrong_exit", "check_wrong_lane",  "check_wrong_kind", "check_wrong_barrier",
                                  "check_wrong_wait", "check_wrong_align" };
    for (const char *name : wrong)
        expect(!launch(name, 2, emu_find(name)->threads, 0, p), name, 0);
    expect(!launch("check_dirty", 1, 64, 0, p), "more threads than KERNEL() says", 0);
    shuffles(); // after failures
    if (argc > 1) {
        std::vector<float> f(128);
        p = { nullptr, nullptr, f.data(), nullptr, 100000 };
        timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        launch("check_speed", 1, 128, 0, p);
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%.1f ns a warp's shuffle\n", ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / 4e5);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
