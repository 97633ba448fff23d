// The quantized formats: where a GGUF block keeps its fields, and how a packed panel keeps them.
//
// A matrix is packed into panels of kLanes rows (the last one filled up with zeros). A panel is two streams:
//
//   codes    for each block of 32 columns, the codes of all rows, low bits in nibbles, further bits in planes:
//              4 vectors: byte of vector i = code of vector i | code of vector i + 4 << 4     (vectors: see kinds.h)
//              5 bits: + 1 vector, bit g of a byte = the highest bit of its code in vector g
//              6 bits: + 2 vectors, bits 2 (g % 4) … of a byte of vector g / 4 = the upper bits of its code in vector g
//              8 bits: 8 vectors as they are used
//   heads    for each GGUF block (32 or 256 columns), the scales of all rows, field by field, as the file has them
//
// both rounded up to 64 bytes, so that vectors of codes are aligned.
#pragma once
#include "half.h"
#include "kinds.h"

namespace bst {

constexpr int kVector = 4 * kLanes;  // bytes

template <int kBits>
constexpr int kCodeBytes = (kBits == 8 ? 8 : kBits) * kVector;

// --- codes ---

template <int kBits, int g>
static inline Bytes high_bits(const uint8_t* planes) {
  if constexpr (kBits == 5) {
    const Bytes h = load_bytes(planes);
    if constexpr (g < 4) return left<4 - g>(h) & set_bytes(16);
    else return right<g - 4>(h) & set_bytes(16);
  } else {
    const Bytes h = load_bytes(planes + g / 4 * kVector);
    constexpr int at = 2 * (g % 4);
    if constexpr (at <= 4) return left<4 - at>(h) & set_bytes(48);
    else return right<at - 4>(h) & set_bytes(48);
  }
}

template <int kBits, int g>
static inline Bytes code(const uint8_t* codes) {
  if constexpr (kBits == 8) {
    return load_bytes(codes + g * kVector);
  } else {
    const Bytes pair = load_bytes(codes + g % 4 * kVector);
    const Bytes nibble = (g < 4 ? pair : right<4>(pair)) & set_bytes(15);
    if constexpr (kBits == 4) return nibble;
    else return nibble | high_bits<kBits, g>(codes + 4 * kVector);
  }
}

template <int kBits>
static inline void read_codes(const uint8_t* codes, Bytes (&q)[8]) {
  q[0] = code<kBits, 0>(codes);
  q[1] = code<kBits, 1>(codes);
  q[2] = code<kBits, 2>(codes);
  q[3] = code<kBits, 3>(codes);
  q[4] = code<kBits, 4>(codes);
  q[5] = code<kBits, 5>(codes);
  q[6] = code<kBits, 6>(codes);
  q[7] = code<kBits, 7>(codes);
}

// The codes of 32 columns of one row, into their places among the zeros of a block.
template <int kBits>
static inline void write_codes(uint8_t* codes, int lane, const uint8_t (&code)[kBlock]) {
  for (int k = 0; k < kBlock; ++k) {
    const int g = k / 4, at = lane * 4 + k % 4;
    if constexpr (kBits == 8) {
      codes[g * kVector + at] = code[k];
      continue;
    }
    codes[g % 4 * kVector + at] |= static_cast<uint8_t>((code[k] & 15) << (g < 4 ? 0 : 4));
    if constexpr (kBits == 5) codes[4 * kVector + at] |= static_cast<uint8_t>((code[k] >> 4) << g);
    if constexpr (kBits == 6) codes[(4 + g / 4) * kVector + at] |= static_cast<uint8_t>((code[k] >> 4) << 2 * (g % 4));
  }
}

// --- heads: `put` copies one row's fields from its GGUF block, `get` reads those of sub-block j for all rows ---

static inline void put_half(uint8_t* field, int lane, const uint8_t* from) { std::memcpy(field + 2 * lane, from, 2); }
static inline Floats get_half(const uint8_t* field) { return from_half(reinterpret_cast<const uint16_t*>(field)); }

struct Scale {
  static constexpr int kBytes = 2 * kLanes;
  static void put(uint8_t* head, int lane, const uint8_t* block) { put_half(head, lane, block); }
  static void get(const uint8_t* head, int, Decoded& w) { w.scale = get_half(head); }
};

struct ScaleMin {
  static constexpr int kBytes = 4 * kLanes;
  static void put(uint8_t* head, int lane, const uint8_t* block) {
    put_half(head, lane, block);
    put_half(head + 2 * kLanes, lane, block + 2);
  }
  static void get(const uint8_t* head, int, Decoded& w) {
    w.scale = get_half(head);
    w.second = get_half(head + 2 * kLanes);
  }
};

// Q4_K, Q5_K: two halves, then eight scales and eight minima of 6 bits, unpacked to bytes here.
struct ScalesMins {
  static constexpr int kBytes = 20 * kLanes;
  static void put(uint8_t* head, int lane, const uint8_t* block) {
    put_half(head, lane, block);
    put_half(head + 2 * kLanes, lane, block + 2);
    const uint8_t* p = block + 4;  // p[0…3], p[4…7]: low six bits; p[8…11]: nibbles of 4…7, their top bits in p[0…7]
    for (int j = 0; j < 8; ++j) {
      const int scale = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
      const int minimum = j < 4 ? p[j + 4] & 63 : (p[j + 4] >> 4) | (p[j] >> 6) << 4;
      head[(4 + j) * kLanes + lane] = static_cast<uint8_t>(scale);
      head[(12 + j) * kLanes + lane] = static_cast<uint8_t>(minimum);
    }
  }
  static void get(const uint8_t* head, int j, Decoded& w) {
    w.scale = get_half(head) * from_uint8(head + (4 + j) * kLanes);
    w.second = set(0.0f) - get_half(head + 2 * kLanes) * from_uint8(head + (12 + j) * kLanes);
  }
};

// Q6_K: one half, then sixteen signed scales, two for each sub-block of 32.
struct HalfScales {
  static constexpr int kBytes = 18 * kLanes;
  static void put(uint8_t* head, int lane, const uint8_t* block) {
    put_half(head, lane, block + 208);
    for (int j = 0; j < 16; ++j) head[(2 + j) * kLanes + lane] = block[192 + j];
  }
  static void get(const uint8_t* head, int j, Decoded& w) {
    const Floats d = get_half(head);
    const auto* scales = reinterpret_cast<const int8_t*>(head + (2 + 2 * j) * kLanes);
    w.scale = d * from_int8(scales);
    w.second = d * from_int8(scales + kLanes);
  }
};

// --- formats: `codes` gives those of sub-block j of a GGUF block of `kSourceBytes` and 32 * `kSubBlocks` columns ---

template <class K, class H, int sub_blocks, int source_bytes, int stored_bits = K::kBits>
struct Format {
  using kind = K;
  using head = H;
  static constexpr int kSubBlocks = sub_blocks, kSourceBytes = source_bytes, kStored = stored_bits;

  static void decode(const uint8_t* codes, Decoded& w) { read_codes<kStored>(codes, w.q); }
};

static inline void nibbles(const uint8_t* from, uint8_t (&code)[kBlock]) {
  for (int i = 0; i < 16; ++i) code[i] = from[i] & 15, code[i + 16] = from[i] >> 4;
}

static inline void add_fifth_bits(const uint8_t* from, uint8_t (&code)[kBlock]) {
  for (int i = 0; i < kBlock; ++i) code[i] = static_cast<uint8_t>(code[i] | ((from[i / 8] >> i % 8) & 1) << 4);
}

struct Q4_0 : Format<Bits4, Scale, 1, 18> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) { nibbles(block + 2, code); }
};

struct Q4_1 : Format<Bits4Min, ScaleMin, 1, 20> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) { nibbles(block + 4, code); }
};

struct Q5_0 : Format<Bits5, Scale, 1, 22> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) {
    nibbles(block + 6, code);
    add_fifth_bits(block + 2, code);
  }
};

struct Q5_1 : Format<Bits5Min, ScaleMin, 1, 24> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) {
    nibbles(block + 8, code);
    add_fifth_bits(block + 4, code);
  }
};

struct Q8_0 : Format<Bits8, Scale, 1, 34> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) {
    for (int i = 0; i < kBlock; ++i) code[i] = block[2 + i] ^ 0x80;  // signed bytes as codes with the zero point 128
  }
};

struct IQ4_NL : Format<Bits8, Scale, 1, 18, 4> {
  static void codes(const uint8_t* block, int, uint8_t (&code)[kBlock]) { nibbles(block + 2, code); }
  static void decode(const uint8_t* codes, Decoded& w) {
    static constexpr uint8_t values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                           129, 141, 153, 166, 181, 197, 217, 241};  // -127 … 113, plus 128
    read_codes<4>(codes, w.q);
    for (auto& q : w.q) q = lookup(values, q);
  }
};

static inline void k_nibbles(const uint8_t* from, int j, uint8_t (&code)[kBlock]) {
  for (int i = 0; i < kBlock; ++i) code[i] = (from[j / 2 * 32 + i] >> (j % 2 * 4)) & 15;
}

struct Q4_K : Format<Bits4Min, ScalesMins, 8, 144> {
  static void codes(const uint8_t* block, int j, uint8_t (&code)[kBlock]) { k_nibbles(block + 16, j, code); }
};

struct Q5_K : Format<Bits5Min, ScalesMins, 8, 176> {
  static void codes(const uint8_t* block, int j, uint8_t (&code)[kBlock]) {
    k_nibbles(block + 48, j, code);
    for (int i = 0; i < kBlock; ++i) code[i] = static_cast<uint8_t>(code[i] | ((block[16 + i] >> j) & 1) << 4);
  }
};

struct Q6_K : Format<Bits6, HalfScales, 8, 210> {
  static void codes(const uint8_t* block, int j, uint8_t (&code)[kBlock]) {
    const uint8_t* low = block + j / 4 * 64 + j % 2 * 32;
    const uint8_t* high = block + 128 + j / 4 * 32;
    for (int i = 0; i < kBlock; ++i) {
      const int nibble = (low[i] >> (j % 4 / 2 * 4)) & 15;
      code[i] = static_cast<uint8_t>(nibble | ((high[i] >> 2 * (j % 4)) & 3) << 4);
    }
  }
};

// --- the packed panel ---

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class F>
struct Panel {
  static constexpr int kCodes = kCodeBytes<F::kStored>, kHead = F::head::kBytes;
  static int64_t codes_bytes(int64_t columns) { return round_up(columns / kBlock * kCodes, 64); }
  static int64_t bytes(int64_t columns) {
    return codes_bytes(columns) + round_up(columns / (kBlock * F::kSubBlocks) * kHead, 64);
  }
};

template <class F>
static inline void decode_block(const uint8_t* codes, const uint8_t* heads, int64_t block, Decoded& w) {
  F::decode(codes + block * Panel<F>::kCodes, w);
  F::head::get(heads + block / F::kSubBlocks * Panel<F>::kHead, static_cast<int>(block % F::kSubBlocks), w);
}

}  // namespace bst
