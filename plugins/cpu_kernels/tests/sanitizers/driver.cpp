// Every kernel once over, in buffers of exactly the size that the interface asks for: run under sanitizers, which see
// what lies beyond. Numbers are compared elsewhere; here only that parts add up to the same whole.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "bestiary_cpu.h"

namespace {

std::mt19937 generator(1);

// A heap block of exactly `bytes`: one byte too many is an error that the sanitizer sees.
struct Buffer {
  explicit Buffer(size_t bytes) : size(bytes), data(static_cast<unsigned char*>(std::malloc(bytes ? bytes : 1))) {
    for (size_t i = 0; i < size; ++i) data[i] = static_cast<unsigned char>(generator() & 0xBF);  // no NaN, no infinity
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  float* floats() { return reinterpret_cast<float*>(data); }

  size_t size;
  unsigned char* data;
};

struct Numbers : Buffer {
  explicit Numbers(int64_t count) : Buffer(static_cast<size_t>(count) * 4) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) floats()[i] = normal(generator);
  }
};

[[noreturn]] void fail(const char* what, int format) {
  std::fprintf(stderr, "%s, format %d\n", what, format);
  std::exit(1);
}

void run(bst_pool* pool, bst_kernel kernel, const void* args) {
  const bst_step step = {kernel, args, 1};
  if (bst_run(pool, &step, 1) != 0) fail("a run was refused", -1);
}

void products(bst_pool* pool, int format, int64_t n_out, int64_t n_in) {
  const int64_t row = bst_row_size(format, n_in);
  Buffer source(static_cast<size_t>(row * n_out)), packed(static_cast<size_t>(bst_packed_size(format, n_out, n_in)));
  const bst_pack_args pack = {format, source.data, row, n_out, n_in, packed.data};
  run(pool, bst_pack, &pack);
  Numbers decoded(n_out * n_in);
  const bst_decode_args decode = {format, packed.data, n_out, n_in, nullptr, n_out, decoded.floats(), n_in};
  run(pool, bst_decode, &decode);
  const int quantized = bst_takes_quantized(format);
  for (int64_t rows : {1, 2, 5, 8, 9, 19}) {
    Numbers x(rows * n_in), bias(n_out), out(rows * n_out), again(rows * n_out);
    Buffer prepared(static_cast<size_t>(bst_prepared_size(quantized, rows, n_in)));
    const bst_prepare_args prepare = {quantized, x.floats(), n_in, nullptr, rows, n_in, prepared.data, nullptr};
    bst_matmul_args product = {format, packed.data, prepared.data, rows, n_out, n_in, out.floats(), n_out,
                               bias.floats(), nullptr, 0};
    const bst_step steps[] = {{bst_prepare, &prepare, 0}, {bst_matmul, &product, 1}};
    if (bst_run(pool, steps, 2) != 0) fail("a run was refused", format);
    product.out = again.floats();
    for (int part = 6; part >= 0; --part) bst_matmul(&product, part, 7);
    if (std::memcmp(out.data, again.data, out.size) != 0) fail("parts do not add up", format);
  }
}

void between(bst_pool* pool, int64_t rows, int64_t n) {
  Numbers x(rows * 2 * n), weight(n), bias(n), residual(rows * n), sum(rows * n), out(rows * n);
  Buffer prepared(static_cast<size_t>(bst_prepared_size(1, rows, n)));
  const bst_norm_args norm = {x.floats(), 2 * n, 0, 0, residual.floats(), n, sum.floats(), n, weight.floats(), bias.floats(),
                              0.0f, 1e-5f, 1, rows, n, out.floats(), n, 1, n % 32 ? nullptr : prepared.data};
  run(pool, bst_norm, &norm);
  for (int function = BST_IDENTITY; function <= BST_RELU2; ++function) {
    const bst_activation_args activation = {function, 1, x.floats(), 2 * n, rows, n, out.floats(), n, 1,
                                            n % 32 ? nullptr : prepared.data, nullptr};
    run(pool, bst_activation, &activation);
  }
  std::vector<int64_t> ids(static_cast<size_t>(rows));
  const bst_argmax_args argmax = {x.floats(), 2 * n, rows, 2 * n, ids.data()};
  run(pool, bst_argmax, &argmax);
}

void adapters(bst_pool* pool, int format, bool table) {
  const int64_t slots = 2, shards = table ? 1 : 2, rank = 5, n_in = 37, rows = 3, ends[] = {21, 30};
  const int64_t size = format == 0 ? 4 : 2, outputs = ends[shards - 1];
  Buffer a(static_cast<size_t>(slots * shards * rank * n_in * size)), b(static_cast<size_t>(slots * outputs * rank * size));
  Numbers x(rows * n_in), inner(rows * shards * rank), out(rows * outputs);
  const int32_t ranks[] = {3, 5};
  const int64_t slot_of[] = {1, -1, 0}, ids[] = {36, 0, 7};
  const bst_lora_args args = {format, a.data, b.data, slots, shards, rank, n_in, ends, ranks, slot_of,
                              table ? ids : nullptr, x.floats(), n_in, rows, inner.floats(), out.floats(), outputs};
  const bst_step steps[] = {{bst_lora_shrink, &args, 0}, {bst_lora_expand, &args, 1}};
  if (bst_run(pool, steps, 2) != 0) fail("a run was refused", format);
}

void experts(bst_pool* pool, int format, int64_t n) {
  const int64_t tokens = 7, k = 3, count = 4, pairs = tokens * k;
  const int64_t row = bst_row_size(format, n), bytes = bst_packed_size(format, n, n);
  Buffer source(static_cast<size_t>(row * n)), packed(static_cast<size_t>(bytes * count));
  for (int64_t e = 0; e < count; ++e) {
    const bst_pack_args pack = {format, source.data, row, n, n, packed.data + e * bytes};
    run(pool, bst_pack, &pack);
  }
  Numbers logits(tokens * count), bias(count), weights(pairs), x(tokens * n), inner(pairs * n), out(tokens * n);
  Buffer slots(static_cast<size_t>(pairs) * 8), offsets(static_cast<size_t>(count + 1) * 4);
  Buffer places(static_cast<size_t>(pairs) * 4), rows_of(static_cast<size_t>(pairs) * 4);
  Buffer tiles(static_cast<size_t>(pairs) * 8);
  const int quantized = bst_takes_quantized(format);
  Buffer prepared(static_cast<size_t>(bst_prepared_size(quantized, pairs, n)));
  auto* ids = reinterpret_cast<int64_t*>(slots.data);
  auto* starts = reinterpret_cast<int32_t*>(offsets.data);
  auto* rows = reinterpret_cast<int32_t*>(rows_of.data);
  auto* tile = reinterpret_cast<int32_t*>(tiles.data);
  auto* place = reinterpret_cast<int32_t*>(places.data);
  const bst_topk_args topk = {logits.floats(), count, tokens, static_cast<int32_t>(count), static_cast<int32_t>(k),
                              BST_SIGMOID, 1, bias.floats(), 2, 2, weights.floats(), ids};
  const bst_route_args route = {ids, tokens, k, count - 1, starts, place, rows, tile};  // the last expert is elsewhere
  const bst_prepare_args prepare = {quantized, x.floats(), n, rows, pairs, n, prepared.data, tile};
  const bst_expert_matmul_args product = {format, packed.data, bytes, prepared.data, starts, count - 1, n, n,
                                          inner.floats(), n};
  const bst_activation_args activation = {BST_SILU, 0, inner.floats(), n, pairs, n, nullptr, 0, quantized,
                                          prepared.data, tile};
  const bst_expert_combine_args combine = {inner.floats(), n, weights.floats(), place, tokens, k, n, x.floats(), n,
                                           out.floats(), n};
  const bst_step steps[] = {{bst_topk, &topk, 1}, {bst_route, &route, 1}, {bst_prepare, &prepare, 1},
                            {bst_expert_matmul, &product, 1}, {bst_activation, &activation, 1},
                            {bst_expert_matmul, &product, 1}, {bst_expert_combine, &combine, 1}};
  if (bst_run(pool, steps, 7) != 0) fail("a run was refused", format);
}

void attention(bst_pool* pool, int kv_type, int head_size, int window) {
  const int heads = 6, kv_heads = 2, block_size = 16, width = heads * head_size, kv_width = kv_heads * head_size;
  const int32_t start[] = {0, 1, 21}, lengths[] = {300, 270};
  const int blocks = 19, bytes = kv_type == BST_KV_F32 ? 4 : kv_type == BST_KV_INT8 ? 1 : 2;
  const int64_t slots = 2 * blocks * block_size, rows = 21;
  std::vector<int32_t> tables(2 * blocks);
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(tables.size() - 1 - i);
  const int scale = kv_type == BST_KV_INT8 ? 4 : 0;
  Buffer cache(static_cast<size_t>(slots * 2 * kv_heads * (head_size * bytes + scale)));
  Numbers key(slots * kv_width), value(slots * kv_width), angles(slots * head_size);
  Numbers query(slots * width), out(rows * width), again(rows * width), slopes(heads), sinks(heads);
  std::vector<int64_t> places(static_cast<size_t>(slots));
  for (int64_t i = 0; i < slots; ++i) places[static_cast<size_t>(i)] = slots - 1 - i;
  const bst_rope_args rope = {query.floats(), width, nullptr, 0, key.floats(), kv_width, nullptr, 0, value.floats(), kv_width, angles.floats(),
                              angles.floats(), head_size, nullptr, places.data(), slots, heads, kv_heads, head_size,
                              head_size, kv_type % 2, kv_type, block_size, cache.data};
  run(pool, bst_rope, &rope);
  const int64_t splits = 2;
  Numbers partial(rows * heads * splits * (head_size + 2));
  bst_attention_args args = {query.floats(), width, cache.data, start, lengths, tables.data(), blocks,
                             rows, 2, kv_type, block_size, heads, kv_heads, head_size, window, 0.1f, 5.0f,
                             slopes.floats(), sinks.floats(), nullptr, splits, out.floats(), width, 1, nullptr};
  run(pool, bst_attention, &args);
  args.partial = partial.floats(), args.out = again.floats();
  const bst_step steps[] = {{bst_attention, &args, 0}, {bst_attention_join, &args, 1}};
  if (bst_run(pool, steps, 2) != 0) fail("a run was refused", kv_type);
  if (std::memcmp(out.data, again.data, out.size) != 0) fail("splits do not add up", kv_type);
}

void forked(bst_pool* pool) {
  const pid_t child = fork();
  if (child == 0) _exit(bst_run(pool, nullptr, 0) == BST_FORKED ? 0 : 1);
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("a fork's copy ran", -1);
}

}  // namespace

int main() {
  for (int threads : {1, 3}) {
    bst_pool* pool = bst_pool_create(threads);
    if (!pool) fail("no threads", threads);
    for (int format : {0, 1, 30}) products(pool, format, 21, 75);
    for (int format : {2, 3, 6, 7, 8, 20}) products(pool, format, 37, 96);
    for (int format : {12, 13, 14}) products(pool, format, 37, 512);
    for (int format : {0, 1, 30}) adapters(pool, format, false), adapters(pool, format, true);
    for (int format : {1, 3}) experts(pool, format, 96);
    for (int64_t n : {40, 96}) between(pool, 9, n);
    for (int kv_type = BST_KV_F32; kv_type <= BST_KV_INT8; ++kv_type) attention(pool, kv_type, 48, kv_type % 2 ? 20 : 0);
    for (int i = 0; i < 2000; ++i) between(pool, 1, 32);  // threads meet often
    usleep(20000);                                        // and have gone to sleep
    between(pool, 1, 32);
    forked(pool);
    bst_pool_destroy(pool);
  }
  std::puts("done");
}
