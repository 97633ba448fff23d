// Threads that wait for steps: spinning a short while, then asleep.
//
// A run of steps is announced by a new `epoch`. Every thread walks the same list; a step that needs earlier results
// begins behind a barrier, as does the end of the list. Both are `Gate`s: a number that only grows.
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "bestiary_cpu.h"

namespace {

constexpr int kSpins = 4000;  // of a pause each: some tens of microseconds, more than lies between two steps of a model

std::atomic<unsigned> forks{0};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Gate {
 public:
  unsigned value() const { return value_.load(std::memory_order_acquire); }

  void advance() {
    value_.fetch_add(1);
    if (asleep_.load() == 0) return;
    std::lock_guard<std::mutex> hold(mutex_);
    wake_.notify_all();
  }

  // Until the value is no longer `seen`.
  void wait(unsigned seen) {
    for (int i = 0; i < kSpins; ++i) {
      if (value() != seen) return;
      relax();
    }
    std::unique_lock<std::mutex> hold(mutex_);
    asleep_.fetch_add(1);  // before the value is looked at again: either it is new, or advance() sees the sleeper
    while (value_.load() == seen) wake_.wait(hold);
    asleep_.fetch_sub(1);
  }

 private:
  std::atomic<unsigned> value_{0};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace

struct bst_pool {
  int threads = 1;
  unsigned forks_seen = 0;
  std::thread* workers = nullptr;
  Gate epoch, barrier;
  std::atomic<int> arrived{0};
  std::atomic<bool> stop{false}, busy{false};
  const bst_step* steps = nullptr;  // of the current epoch; written before it is announced
  int64_t count = 0;

  void meet() {
    if (threads == 1) return;
    const unsigned seen = barrier.value();
    if (arrived.fetch_add(1) + 1 == threads) {
      arrived.store(0);
      barrier.advance();
    } else {
      barrier.wait(seen);
    }
  }

  void walk(int part) {
    for (int64_t i = 0; i < count; ++i) {
      if (steps[i].wait && i > 0) meet();
      steps[i].kernel(steps[i].args, part, threads);
    }
    meet();
  }

  void work(int part) {
    for (unsigned seen = 0;; ++seen) {
      epoch.wait(seen);
      if (stop.load()) return;
      walk(part);
    }
  }

  void finish(int started) {
    stop.store(true);
    epoch.advance();
    for (int i = 0; i < started; ++i) workers[i].join();
    delete[] workers;
  }
};

// Starts the workers, which leave signals to the threads that expect them. If the system has no more threads, none.
static bool start(bst_pool* pool) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int part = 1;
  try {
    for (; part < pool->threads; ++part) pool->workers[part - 1] = std::thread([pool, part] { pool->work(part); });
  } catch (...) {
    pool->finish(part - 1);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return part == pool->threads;
}

BST_API bst_pool* bst_pool_create(int threads) {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  if (threads < 1 || watched != 0) return nullptr;
  auto* pool = new (std::nothrow) bst_pool;
  if (!pool) return nullptr;
  pool->threads = threads;
  pool->forks_seen = forks.load();
  pool->workers = new (std::nothrow) std::thread[static_cast<size_t>(threads)];
  if (!pool->workers) return delete pool, nullptr;
  if (start(pool)) return pool;
  return delete pool, nullptr;
}

BST_API void bst_pool_destroy(bst_pool* pool) {
  if (!pool || pool->forks_seen != forks.load()) return;  // a fork's copy has no threads to end: left as it is
  pool->finish(pool->threads - 1);
  delete pool;
}

BST_API int bst_pool_threads(const bst_pool* pool) { return pool->threads; }

BST_API int bst_run(bst_pool* pool, const bst_step* steps, int64_t count) {
  if (pool->forks_seen != forks.load()) return BST_FORKED;
  if (pool->busy.exchange(true)) return BST_BUSY;
  pool->steps = steps;
  pool->count = count;
  if (pool->threads > 1) pool->epoch.advance();
  pool->walk(0);
  pool->busy.store(false);
  return 0;
}
