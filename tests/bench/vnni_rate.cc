// How many vpdpbusd of 64 bytes one thread of this processor runs in a second.
#include <ctime>

extern "C" double vnni_rate() {
    const auto seconds = [] {
        timespec now;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    };
    const double start = seconds();
    for (int i = 0; i < 20000; ++i)
        __asm__ volatile(
#define EDGE_ONE(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n\t"
            EDGE_ONE(16) EDGE_ONE(17) EDGE_ONE(18) EDGE_ONE(19) EDGE_ONE(20) EDGE_ONE(21) EDGE_ONE(22) EDGE_ONE(23)
            EDGE_ONE(24) EDGE_ONE(25) EDGE_ONE(26) EDGE_ONE(27)
            :
            :
            : "memory");
    return 20000 * 12 / (seconds() - start);
}
