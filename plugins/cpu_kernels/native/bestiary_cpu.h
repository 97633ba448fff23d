// The C interface of bestiary_cpu: plain pointers and sizes. Python's mirror of it is bestiary_cpu/_abi.py.
//
// A kernel is a function of one shape, `void kernel(const void* args, int part, int parts)`: it does part `part` of
// the `parts` that its work is divided into. Parts may run at the same time and in any order; together they do all,
// and no result depends on how many there are. Kernels allocate nothing, throw nothing and keep nothing.
// Matrices are row-major; strides count elements. Pointers called optional may be null.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define BST_API extern "C" __attribute__((visibility("default")))

typedef void (*bst_kernel)(const void* args, int part, int parts);

// --- the library ---

// The layouts and signatures in this file; Python refuses another number.
#define BST_ABI 2
BST_API int bst_abi(void);
BST_API const char* bst_isa(void);  // "avx512", "avx2", "scalar": what this shared object is compiled for
BST_API int bst_lanes(void);        // rows of a packed panel; packed bytes mean something to a library of the same isa
// What the processor and the system offer: 2 AVX-512 with VNNI, 1 AVX2 with FMA and F16C, 0 neither.
BST_API int bst_cpu_level(void);
// Memory for weights, 64-byte aligned, in huge pages where the system gives them; null if there is none.
BST_API void* bst_allocate(size_t bytes);
BST_API void bst_free(void* memory, size_t bytes);

// --- weights ---

// Formats go by their GGML numbers: F32 0, F16 1, Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8, Q4_K 12, Q5_K 13, Q6_K 14,
// IQ4_NL 20, BF16 30.
// Bytes of a packed [n_out, n_in] matrix; 0 for a format that is not known, or rows that are no whole blocks.
BST_API int64_t bst_packed_size(int format, int64_t n_out, int64_t n_in);
// Bytes of one row as GGUF stores it; 0 likewise.
BST_API int64_t bst_row_size(int format, int64_t n_in);

typedef struct {
  int32_t format;
  const void* source;  // rows as GGUF stores them
  int64_t source_stride;  // bytes from row to row
  int64_t n_out, n_in;
  void* packed;
} bst_pack_args;
BST_API void bst_pack(const void* bst_pack_args, int part, int parts);

// Rows of a packed matrix as fp32: embeddings (and tests). out[i] = row ids[i], or row i without ids.
typedef struct {
  int32_t format;
  const void* packed;
  int64_t n_out, n_in;
  const int64_t* ids;  // optional; every one in 0 … n_out - 1
  int64_t count;
  float* out;  // [count, n_in]
  int64_t out_stride;
} bst_decode_args;
BST_API void bst_decode(const void* bst_decode_args, int part, int parts);

// fp32 rows to the blocks of Q8_0 or Q4_1, as GGUF stores them: quantizing while loading.
typedef struct {
  int32_t format;
  const float* source;
  int64_t source_stride, n_out, n_in;
  void* blocks;  // n_out rows of bst_row_size bytes
} bst_quantize_args;
BST_API void bst_quantize_weights(const void* bst_quantize_args, int part, int parts);

// --- products ---

// Whether a format's products read quantized activations (1) or fp32 ones (0).
BST_API int bst_takes_quantized(int format);
BST_API int64_t bst_prepared_size(int quantized, int64_t rows, int64_t n_in);

typedef struct {
  int32_t quantized;
  const float* x;
  int64_t x_stride;
  const int32_t* rows_of;  // optional: row i is x's row rows_of[i]
  int64_t rows, n_in;
  void* prepared;
  const int32_t* tiles;  // optional: bst_route
} bst_prepare_args;
BST_API void bst_prepare(const void* bst_prepare_args, int part, int parts);

// out = x · weightᵀ + bias + add. `add` may be `out`.
typedef struct {
  int32_t format;
  const void* weight;    // packed
  const void* prepared;  // of `rows` rows
  int64_t rows, n_out, n_in;
  float* out;
  int64_t out_stride;
  const float* bias;  // optional, [n_out]
  const float* add;   // optional, [rows, n_out]
  int64_t add_stride;
} bst_matmul_args;
BST_API void bst_matmul(const void* bst_matmul_args, int part, int parts);

// --- between products ---
//
// `out` and `prepared` are both optional: fp32 rows, and rows prepared for the next product (`quantized` as for
// bst_prepare; then columns must be whole blocks of 32).

// y = (x + residual - mean) / sqrt(variance + eps) * (weight + weight_offset) + bias, the mean being 0 unless `center`
// (layer norm; otherwise RMS norm). `sum`, optional, receives x + residual; it may be neither of them.
// Rows may lie in groups, as heads do in a token's row: row i is at x + i / group * x_group_stride + i % group * x_stride;
// with group 0 at x + i * x_stride.
typedef struct {
  const float* x;
  int64_t x_stride;
  int64_t group, x_group_stride;
  const float* residual;  // optional
  int64_t residual_stride;
  float* sum;  // optional
  int64_t sum_stride;
  const float* weight;  // optional
  const float* bias;    // optional
  float weight_offset;  // 1 for Gemma
  float eps;
  int32_t center;
  int64_t rows, n;
  float* out;
  int64_t out_stride;
  int32_t quantized;
  void* prepared;
} bst_norm_args;
BST_API void bst_norm(const void* bst_norm_args, int part, int parts);

enum { BST_IDENTITY, BST_SILU, BST_GELU, BST_GELU_TANH, BST_QUICK_GELU, BST_RELU2 };
// y = f(x), or with `gated` f(x[:n]) * x[n:2n].
typedef struct {
  int32_t function, gated;
  const float* x;
  int64_t x_stride;
  int64_t rows, n;  // columns of the result
  float* out;
  int64_t out_stride;
  int32_t quantized;
  void* prepared;
  const int32_t* tiles;  // optional: bst_route
} bst_activation_args;
BST_API void bst_activation(const void* bst_activation_args, int part, int parts);

// --- adapters ---

// out[row] += B (A x[row]) with the factors of the row's slot: bst_lora_shrink makes A x, bst_lora_expand, called with
// the same arguments behind a barrier, the rest. With `ids` A is a table, and A x[row] its row ids[row].
typedef struct {
  int32_t format;  // of a and b: F32, F16 or BF16
  const void* a;  // [slots, shards, rank, n_in]; a table: [slots, n_in, rank], and one shard
  const void* b;  // [slots, outputs of all shards, rank]
  int64_t slots, shards, rank, n_in;
  const int64_t* ends;   // [shards]: where each shard's outputs end
  const int32_t* ranks;  // [slots]: how much of `rank` a slot uses; 0: it holds nothing
  const int64_t* slot_of;  // [rows]; any number that is no slot: nothing is added
  const int64_t* ids;      // optional, [rows]
  const float* x;          // [rows, n_in], unless `ids`
  int64_t x_stride, rows;
  float* inner;  // [rows, shards * rank]
  float* out;
  int64_t out_stride;
} bst_lora_args;
BST_API void bst_lora_shrink(const void* bst_lora_args, int part, int parts);
BST_API void bst_lora_expand(const void* bst_lora_args, int part, int parts);

// --- experts ---
//
// A token goes to k experts: a pair each. Pairs are sorted by expert, and the rows of an expert's products are the
// pairs that it has. From one run to the next only what lies in buffers changes:
//
//   bst_topk        logits → ids and weights           bst_expert_matmul   rows · w13ᵀ, each with its own expert
//   bst_route       ids → who computes which rows      bst_activation      with `tiles`
//   bst_prepare     with `rows_of` and `tiles`         bst_expert_matmul   · w2ᵀ
//                                                      bst_expert_combine  a token's sums

#define BST_MOST_EXPERTS 1024  // that bst_topk can choose among
enum { BST_SOFTMAX, BST_SIGMOID };
// The k best experts of each token, best first, of equals the lower id; NaN counts as best, as in torch. The choice is
// made by score + bias, among the `kept_groups` best of `groups` groups if there are any: a group is worth its best
// score, with a bias its two best. `renormalize`: a token's weights sum to one.
typedef struct {
  const float* logits;  // [tokens, experts]
  int64_t logits_stride, tokens;
  int32_t experts, k;  // k at most experts
  int32_t scoring, renormalize;
  const float* bias;  // optional, [experts]
  int32_t groups, kept_groups;  // 0: none
  float* weights;  // [tokens, k]
  int64_t* ids;    // [tokens, k]
} bst_topk_args;
BST_API void bst_topk(const void* bst_topk_args, int part, int parts);

// Pairs sorted by expert, those of one expert in the order of tokens; pairs of no expert come last and are not computed.
typedef struct {
  const int64_t* slots;  // [tokens, k]: an expert; any other number: one that is not here
  int64_t tokens, k, experts;
  int32_t* offsets;  // [experts + 1]: where each expert's rows begin; the last: how many rows are computed
  int32_t* places;   // [tokens, k]: the row of each pair; -1: not computed
  int32_t* rows_of;  // [tokens * k]: the token of each row
  int32_t* tiles;    // [tokens * k, 2]: first row and rows of the tile that a row is prepared in; 0 rows: not computed
} bst_route_args;
BST_API void bst_route(const void* bst_route_args, int part, int parts);

// out[i] = x[i] · weight[expert of row i]ᵀ
typedef struct {
  int32_t format;
  const void* weight;    // packed matrices, one for each expert
  int64_t weight_bytes;  // from one to the next
  const void* prepared;  // rows as bst_route put them
  const int32_t* offsets;
  int64_t experts, n_out, n_in;
  float* out;
  int64_t out_stride;
} bst_expert_matmul_args;
BST_API void bst_expert_matmul(const void* bst_expert_matmul_args, int part, int parts);

// out[token] = Σ weight * x[row] over its pairs, in the order of their experts, each product and each sum rounded; + add.
typedef struct {
  const float* x;  // [tokens * k, n]
  int64_t x_stride;
  const float* weights;   // [tokens, k]
  const int32_t* places;  // [tokens, k]
  int64_t tokens, k, n;
  const float* add;  // optional, [tokens, n]; may be `out`
  int64_t add_stride;
  float* out;
  int64_t out_stride;
} bst_expert_combine_args;
BST_API void bst_expert_combine(const void* bst_expert_combine_args, int part, int parts);

// --- attention ---

#define BST_MOST_CHANNELS 512  // of a head
enum { BST_KV_F32, BST_KV_F16, BST_KV_BF16, BST_KV_INT8 };

// Queries rotated, in place or to `query_out`; keys, rotated, to `key_out`, to the cache, or both; values to the cache.
//
// The cache is [block][offset][2][kv_heads][head_size]. An int8 row's numbers are multiples of its own fp32 scale; a
// block's scales, [2][kv_heads][offset], lie behind its rows, so that one block after the other is a block's
// block_size * 2 * kv_heads * (head_size + 4) bytes.
typedef struct {
  float* query;  // [rows, heads * head_size]; written only without query_out
  int64_t query_stride;
  float* query_out;  // optional
  int64_t query_out_stride;
  const float* key;  // optional; with `value`
  int64_t key_stride;
  float* key_out;      // optional
  int64_t key_out_stride;
  const float* value;  // with kv_cache
  int64_t value_stride;
  const float* cos;  // [positions, rotary_dim], in the layout's channel order
  const float* sin;  // the same; negative on the first channel of each pair
  int64_t angle_stride;
  const int64_t* positions;  // optional: which row of cos and sin; without it row i has row i
  const int64_t* slots;      // block * block_size + offset; negative: not written
  int64_t rows;
  int32_t heads, kv_heads, head_size;
  int32_t rotary_dim;  // leading channels; 0: nothing is rotated
  int32_t neox;        // pairs are i and i + rotary_dim / 2; otherwise neighbours
  int32_t kv_type, block_size;
  void* kv_cache;  // optional
} bst_rope_args;
BST_API void bst_rope(const void* bst_rope_args, int part, int parts);

// Rows of a table [length, rotary_dim] of angles, the cosines of all pairs and then their sines, as bst_rope reads them.
typedef struct {
  const float* table;
  const int64_t* positions;
  int64_t rows;
  int32_t rotary_dim, neox;
  float *cos, *sin;  // [rows, rotary_dim]
} bst_angles_args;
BST_API void bst_angles(const void* bst_angles_args, int part, int parts);

// Causal attention of the last query_start[s + 1] - query_start[s] tokens of every sequence over its seq_lens[s] keys.
// head_size: a multiple of 16 (32 for `prepared`), at most BST_MOST_CHANNELS.
// With `partial`, bst_attention only fills it, in parts as small as a split of bst_attention_split() keys, and
// bst_attention_join, called with the same arguments behind a barrier, writes the result: same bits, more parallel.
typedef struct {
  const float* query;  // [tokens, heads * head_size]
  int64_t query_stride;
  const void* kv_cache;
  const int32_t* query_start;   // [sequences + 1]
  const int32_t* seq_lens;      // [sequences]
  const int32_t* block_tables;  // [sequences, table_stride]
  int64_t table_stride;
  int64_t rows, sequences;  // rows: all tokens
  int32_t kv_type, block_size, heads, kv_heads, head_size;
  int32_t window;       // keys that a query sees, itself included; 0: all
  float scale, soft_cap;  // soft_cap 0: none
  const float* alibi;   // optional: a slope for each head
  const float* sinks;   // optional: a logit for each head
  float* partial;       // optional: [rows, heads, most_splits, head_size + 2]
  int64_t most_splits;  // of bst_attention_split() keys in the longest sequence
  float* out;
  int64_t out_stride;
  int32_t quantized;
  void* prepared;
} bst_attention_args;
BST_API int bst_attention_split(void);
BST_API void bst_attention(const void* bst_attention_args, int part, int parts);
BST_API void bst_attention_join(const void* bst_attention_args, int part, int parts);

typedef struct {
  const float* x;
  int64_t x_stride, rows, n;
  int64_t* ids;
  float* peaks;  // optional
} bst_argmax_args;
BST_API void bst_argmax(const void* bst_argmax_args, int part, int parts);

// --- measuring ---

// The sum of fp32 numbers, one for each part: what reading memory costs.
typedef struct {
  const float* data;
  int64_t count;
  float* sums;
} bst_read_args;
BST_API void bst_read(const void* bst_read_args, int part, int parts);

// --- threads ---

typedef struct bst_pool bst_pool;
// A pool of `threads`, of which the caller of bst_run is the first; null if threads cannot be had.
BST_API bst_pool* bst_pool_create(int threads);
BST_API void bst_pool_destroy(bst_pool* pool);
BST_API int bst_pool_threads(const bst_pool* pool);

typedef struct {
  bst_kernel kernel;
  const void* args;
  int32_t wait;  // whether this step needs the results of those before it
} bst_step;
// Run steps in order, each divided among all threads: 0. Refused: BST_FORKED in a process that has only a copy of the
// pool, BST_BUSY while another thread runs something.
#define BST_FORKED 1
#define BST_BUSY 2
BST_API int bst_run(bst_pool* pool, const bst_step* steps, int64_t count);
