// Splits a range over the engine's threads. All has internal linkage, so that files which are compiled for
// different instruction sets may include it without sharing code.
#ifndef EDGE_POOL_H
#define EDGE_POOL_H

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "edge.h"

namespace edge {
namespace {

// Calls `body(begin, end)` for parts that cover [0, count), each at least `grain` long save the last, at most one
// a thread. Without a pool, with one thread, or where one part is enough, it runs here. Where memory runs out on an
// engine's thread, which no exception may reach, std::bad_alloc is thrown here once all are done.
template <class Body>
inline void parallel_for(const edge_pool *pool, int64_t count, int64_t grain, const Body &body) {
    if (count <= 0) return;
    const int64_t threads = pool == nullptr ? 1 : pool->threads;
    const int64_t most = (count + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
    const int64_t parts = std::min(threads, most);
    if (parts <= 1) {
        body(int64_t{0}, count);
        return;
    }
    struct Call {
        const Body *body;
        int64_t count, parts;
        std::atomic<bool> failed;
    } call{&body, count, parts, {false}};
    pool->run(
        pool->self, static_cast<int32_t>(parts),
        [](void *argument, int32_t index) {
            Call &c = *static_cast<Call *>(argument);
            const int64_t size = c.count / c.parts, rest = c.count % c.parts;
            const int64_t begin = index * size + std::min<int64_t>(index, rest);
            try {
                (*c.body)(begin, begin + size + (index < rest ? 1 : 0));
            } catch (const std::bad_alloc &) {
                c.failed = true;
            }
        },
        &call);
    if (call.failed) throw std::bad_alloc();
}

}  // namespace
}  // namespace edge

#endif
