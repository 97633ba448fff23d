// What the library says of itself and of the machine, and memory for weights.
#include <sys/mman.h>

#include "bestiary_cpu.h"
#include "vec.h"

BST_API int bst_abi(void) { return BST_ABI; }
BST_API const char* bst_isa(void) { return bst::kIsaName; }
BST_API int bst_lanes(void) { return bst::kLanes; }

BST_API int bst_cpu_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  return avx2 && avx512 ? 2 : avx2 ? 1 : 0;
#else
  return 0;
#endif
}

BST_API void* bst_allocate(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: without it the same memory is read in small pages
#endif
  return memory;
}

BST_API void bst_free(void* memory, size_t bytes) {
  if (memory) munmap(memory, bytes);
}
