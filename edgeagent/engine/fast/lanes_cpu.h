/* What an x86-64 CPU has and its kernel lets programs use (Intel SDM, volume 1, 13.3 and 15.2). Not by __builtin_cpu_supports:
 * some of clang's run-time libraries (Zig's) answer no to all of it. */
#ifndef EA_LANES_CPU_H
#define EA_LANES_CPU_H

#include <cpuid.h>
#include <stdint.h>

#define EA_CPU_SSSE3 1u
#define EA_CPU_AVX2 2u
#define EA_CPU_AVX512 4u /* F, BW, DQ, VL, IFMA, and BMI2 */

static inline unsigned ea_cpu_features(void)
{
    const unsigned avx512 = 1u << 16 | 1u << 30 | 1u << 17 | 1u << 31 | 1u << 21, avx2 = 1u << 5, bmi2 = 1u << 8;
    const unsigned ymm = 0x6, zmm = 0xe6; /* registers that the kernel saves: bits of XCR0 */
    unsigned a, b, c, d, features = 0, saved = 0, high;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    if (c & 1u << 9)
        features |= EA_CPU_SSSE3;
    if (c & 1u << 27) /* OSXSAVE */
        __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return features;
    if ((saved & ymm) == ymm && (b & avx2))
        features |= EA_CPU_AVX2;
    if ((saved & zmm) == zmm && (b & avx2) && (b & bmi2) && (b & avx512) == avx512)
        features |= EA_CPU_AVX512;
    return features;
}

#endif
