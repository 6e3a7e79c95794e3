// A pool of threads behind edge_pool, for tests and benchmarks that call kernels without an engine.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "edge.h"

namespace {

class Threads {
  public:
    explicit Threads(int32_t count) {
        for (int32_t i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
    }

    ~Threads() {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &worker : workers_) worker.join();
    }

    void run(int32_t tasks, void (*task)(void *, int32_t), void *argument) {
        std::lock_guard<std::mutex> one_caller(callers_);
        std::unique_lock<std::mutex> hold(mutex_);
        task_ = task, argument_ = argument, tasks_ = tasks, next_ = 0, left_ = tasks;
        wake_.notify_all();
        drain(hold);
        done_.wait(hold, [this] { return left_ == 0; });
        tasks_ = next_ = 0;
    }

  private:
    // Takes tasks until none is left to start; the lock is held on entry and on return.
    void drain(std::unique_lock<std::mutex> &hold) {
        while (next_ < tasks_) {
            const int32_t index = next_++;
            hold.unlock();
            task_(argument_, index);
            hold.lock();
            if (--left_ == 0) done_.notify_all();
        }
    }

    void work() {
        std::unique_lock<std::mutex> hold(mutex_);
        for (;;) {
            wake_.wait(hold, [this] { return stop_ || next_ < tasks_; });
            if (stop_) return;
            drain(hold);
        }
    }

    std::mutex callers_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    void (*task_)(void *, int32_t) = nullptr;
    void *argument_ = nullptr;
    int32_t tasks_ = 0, next_ = 0, left_ = 0;
    bool stop_ = false;
};

}  // namespace

extern "C" {

// A pool of `threads`, the calling one included; NULL where the system has no more threads.
EDGE_EXPORT edge_pool *edge_pool_new(int32_t threads) noexcept {
    try {
        Threads *self = new Threads(threads);
        return new edge_pool{self, threads, [](void *pool, int32_t tasks, void (*task)(void *, int32_t), void *argument) {
                                 static_cast<Threads *>(pool)->run(tasks, task, argument);
                             }};
    } catch (...) {
        return nullptr;
    }
}

EDGE_EXPORT void edge_pool_free(edge_pool *pool) noexcept {
    if (pool == nullptr) return;
    delete static_cast<Threads *>(pool->self);
    delete pool;
}
}
