// Integers, bits, fp32, and moves between registers.
#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace ptx {

namespace {

template <class T>
T same(T x) {
  return x;
}

template <class T>
T quotient(T a, T b) {
  using U = std::make_unsigned_t<T>;
  if (b == 0) return static_cast<T>(-1);
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? static_cast<T>(U(0) - U(a)) : static_cast<T>(a / b);
}

template <class T>
T remainder_of(T a, T b) {
  if (b == 0) return a;
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T(0) : static_cast<T>(a % b);
}

template <class T>
T shifted_right(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? static_cast<T>(a < 0 ? -1 : 0) : static_cast<T>(a >> by);
}

template <class U>
U shifted_left(U a, uint32_t by) {
  return by >= 8 * sizeof(U) ? U(0) : static_cast<U>(a << by);
}

// bfe: so many bits from a place on, with their sign where T has one.
template <class T>
T field(T a, uint32_t from, uint32_t count) {
  constexpr uint32_t bits = 8 * sizeof(T);
  if (count == 0 || from >= bits) return 0;
  const uint32_t unused = bits - std::min(bits, from + count), length = bits - from - unused;
  return static_cast<T>(static_cast<T>(std::make_unsigned_t<T>(a) << unused) >> (bits - length));
}

template <class T, class TWICE>
void add_wide(Handlers& to, const std::string& type) {
  using U = std::make_unsigned_t<TWICE>;
  to["mul.wide." + type] = of<TWICE, [](T a, T b) { return TWICE(TWICE(a) * TWICE(b)); }, T, T>;
  to["mad.wide." + type] = of<U, [](T a, T b, U c) { return U(U(TWICE(a) * TWICE(b)) + c); }, T, T, U>;
}

template <class T>
void add_integers(Handlers& to, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  to["add." + type] = of<U, [](U a, U b) { return U(a + b); }, U, U>;
  to["sub." + type] = of<U, [](U a, U b) { return U(a - b); }, U, U>;
  to["mul.lo." + type] = of<U, [](U a, U b) { return U(uint64_t(a) * b); }, U, U>;
  to["mul.hi." + type] = of<T, [](T a, T b) { return T(Wide(a) * b >> (8 * sizeof(T))); }, T, T>;
  to["mad.lo." + type] = of<U, [](U a, U b, U c) { return U(uint64_t(a) * b + c); }, U, U, U>;
  to["min." + type] = of<T, [](T a, T b) { return std::min(a, b); }, T, T>;
  to["max." + type] = of<T, [](T a, T b) { return std::max(a, b); }, T, T>;
  to["min.relu." + type] = of<T, [](T a, T b) { return std::max(std::min(a, b), T(0)); }, T, T>;
  to["max.relu." + type] = of<T, [](T a, T b) { return std::max(std::max(a, b), T(0)); }, T, T>;
  to["neg." + type] = of<U, [](U a) { return U(-a); }, U>;
  to["abs." + type] = of<T, [](T a) { return a < 0 ? T(U(0) - U(a)) : a; }, T>;
  to["div." + type] = of<T, quotient<T>, T, T>;
  to["rem." + type] = of<T, remainder_of<T>, T, T>;
  to["shr." + type] = of<T, shifted_right<T>, T, uint32_t>;
  to["bfe." + type] = of<T, field<T>, T, uint32_t, uint32_t>;
  add_comparisons<T, T, same<T>>(to, type);
}

template <class U>
void add_bits(Handlers& to, const std::string& type) {
  to["and." + type] = of<U, [](U a, U b) { return U(a & b); }, U, U>;
  to["or." + type] = of<U, [](U a, U b) { return U(a | b); }, U, U>;
  to["xor." + type] = of<U, [](U a, U b) { return U(a ^ b); }, U, U>;
  to["not." + type] = of<U, [](U a) { return U(~a); }, U>;
  to["shl." + type] = of<U, shifted_left<U>, U, uint32_t>;
  to["shr." + type] = of<U, shifted_right<U>, U, uint32_t>;
  add_comparisons<U, U, same<U>>(to, type);
}

template <class T>
void add_choice(Handlers& to, const std::string& type) {
  to["selp." + type] = of<T, [](T a, T b, uint64_t first) { return first ? a : b; }, T, T, uint64_t>;
}

// What `.ftz` makes of numbers that are not normal.
template <bool FTZ>
float kept(float x) {
  return FTZ && std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

template <bool FTZ, auto F>
void add_one(Handlers& to, const std::string& name) {
  to[name] = of<float, [](float a) { return kept<FTZ>(F(kept<FTZ>(a))); }, float>;
}

template <bool FTZ, auto F>
void add_two(Handlers& to, const std::string& name) {
  to[name] = of<float, [](float a, float b) { return kept<FTZ>(F(kept<FTZ>(a), kept<FTZ>(b))); }, float, float>;
}

// What is only approximate on a GPU is as near as fp32 comes here.
template <bool FTZ>
void add_singles(Handlers& to, const std::string& end) {
  for (const std::string rounding : {"", ".rn"}) {
    add_two<FTZ, [](float a, float b) { return a + b; }>(to, "add" + rounding + end);
    add_two<FTZ, [](float a, float b) { return a - b; }>(to, "sub" + rounding + end);
    add_two<FTZ, [](float a, float b) { return a * b; }>(to, "mul" + rounding + end);
    to["fma" + rounding + end] = of<float, [](float a, float b, float c) {
      return kept<FTZ>(std::fma(kept<FTZ>(a), kept<FTZ>(b), kept<FTZ>(c)));
    }, float, float, float>;
  }
  for (const std::string rounding : {".rn", ".full", ".approx"}) {
    add_two<FTZ, [](float a, float b) { return a / b; }>(to, "div" + rounding + end);
    add_one<FTZ, [](float a) { return std::sqrt(a); }>(to, "sqrt" + rounding + end);
    add_one<FTZ, [](float a) { return 1 / a; }>(to, "rcp" + rounding + end);
  }
  add_one<FTZ, [](float a) { return float(1 / std::sqrt(double(a))); }>(to, "rsqrt.approx" + end);
  add_one<FTZ, [](float a) { return float(std::exp2(double(a))); }>(to, "ex2.approx" + end);
  add_one<FTZ, [](float a) { return float(std::log2(double(a))); }>(to, "lg2.approx" + end);
  add_one<FTZ, [](float a) { return std::fabs(a); }>(to, "abs" + end);
  add_one<FTZ, [](float a) { return -a; }>(to, "neg" + end);
  add_one<FTZ, [](float a) { return std::ceil(a); }>(to, "cvt.rpi" + end + ".f32");
  add_one<FTZ, [](float a) { return std::floor(a); }>(to, "cvt.rmi" + end + ".f32");
  add_two<FTZ, [](float a, float b) { return std::fmax(a, b); }>(to, "max" + end);
  add_two<FTZ, [](float a, float b) { return std::fmin(a, b); }>(to, "min" + end);
  add_two<FTZ, [](float a, float b) { return a + b != a + b ? NAN : std::fmax(a, b); }>(to, "max.NaN" + end);
  add_two<FTZ, [](float a, float b) { return a + b != a + b ? NAN : std::fmin(a, b); }>(to, "min.NaN" + end);
}

template <class R, class A>
void add_conversion(Handlers& to, const std::string& types) {
  // A result of 8 bits lies in a wider register, extended.
  using Kept = std::conditional_t<sizeof(R) == 1, std::conditional_t<std::is_signed_v<R>, int32_t, uint32_t>, R>;
  to["cvt." + types] = of<Kept, [](A a) { return Kept(R(a)); }, A>;
}

template <class R>
void add_conversions(Handlers& to, const std::string& r) {
  add_conversion<R, int8_t>(to, r + ".s8"), add_conversion<R, uint8_t>(to, r + ".u8");
  add_conversion<R, int16_t>(to, r + ".s16"), add_conversion<R, uint16_t>(to, r + ".u16");
  add_conversion<R, int32_t>(to, r + ".s32"), add_conversion<R, uint32_t>(to, r + ".u32");
  add_conversion<R, int64_t>(to, r + ".s64"), add_conversion<R, uint64_t>(to, r + ".u64");
}

template <class A>
A clamped(double x) {
  using Limits = std::numeric_limits<A>;
  if (std::isnan(x)) return 0;
  return x <= double(Limits::min()) ? Limits::min() : x >= double(Limits::max()) ? Limits::max() : static_cast<A>(x);
}

template <class A>
void add_float_conversions(Handlers& to, const std::string& a) {
  to["cvt.rn.f32." + a] = of<float, [](A x) { return float(x); }, A>;
  to["cvt.rzi." + a + ".f32"] = of<A, [](float x) { return clamped<A>(std::trunc(x)); }, float>;
  to["cvt.rni." + a + ".f32"] = of<A, [](float x) { return clamped<A>(std::nearbyint(x)); }, float>;
  to["cvt.rmi." + a + ".f32"] = of<A, [](float x) { return clamped<A>(std::floor(x)); }, float>;
}

template <class T>
void add_type(Handlers& to, const std::string& type) {
  add_conversions<T>(to, type), add_float_conversions<T>(to, type);
  if constexpr (sizeof(T) > 1) add_integers<T>(to, type);
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = selector >> (4 * i) & 15, byte = bytes >> (8 * (which & 7)) & 255;
    out |= (which & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return out;
}

uint32_t looked_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return out;
}

// mov: a register; or one from several, or into several.
template <int BITS>
void move(Warp& warp, const Instruction& at) {
  const auto &to = at.operands[0], &from = at.operands[1];
  const auto mask = [](size_t parts) { return ~0ull >> (64 - BITS / parts); };
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    uint64_t value = 0;
    for (size_t i = 0; i < from.size(); ++i)
      value |= (warp.get(from[i])[lane] & mask(from.size())) << (BITS / from.size() * i);
    for (size_t i = 0; i < to.size(); ++i)
      if (to[i].kind == Operand::kRegister) warp.set(to[i])[lane] = value >> (BITS / to.size() * i) & mask(to.size());
  }
}

}  // namespace

void add_arithmetic(Handlers& to) {
  add_type<int8_t>(to, "s8"), add_type<uint8_t>(to, "u8"), add_type<int16_t>(to, "s16");
  add_type<uint16_t>(to, "u16"), add_type<int32_t>(to, "s32"), add_type<uint32_t>(to, "u32");
  add_type<int64_t>(to, "s64"), add_type<uint64_t>(to, "u64");
  add_wide<int16_t, int32_t>(to, "s16"), add_wide<uint16_t, uint32_t>(to, "u16");
  add_wide<int32_t, int64_t>(to, "s32"), add_wide<uint32_t, uint64_t>(to, "u32");
  add_bits<uint16_t>(to, "b16"), add_bits<uint32_t>(to, "b32"), add_bits<uint64_t>(to, "b64");
  for (const std::string name : {"and", "or", "xor"}) to[name + ".pred"] = to[name + ".b64"];
  to["not.pred"] = of<uint64_t, [](uint64_t a) { return uint64_t(!a); }, uint64_t>;
  for (const std::string type : {"b16", "u16", "s16", "f16", "bf16"}) {
    add_choice<uint16_t>(to, type), to["mov." + type] = move<16>;
  }
  for (const std::string type : {"b32", "u32", "s32", "f32"}) {
    add_choice<uint32_t>(to, type), to["mov." + type] = move<32>;
  }
  for (const std::string type : {"b64", "u64", "s64", "pred"}) {
    add_choice<uint64_t>(to, type), to["mov." + type] = move<64>;
  }
  add_comparisons<float, float, same<float>>(to, "f32");
  add_singles<false>(to, ".f32"), add_singles<true>(to, ".ftz.f32");
  to["cvt.rna.tf32.f32"] = of<uint32_t, [](uint32_t a) { return (a + 0x1000) & ~0x1FFFu; }, uint32_t>;
  using U = uint32_t;
  to["prmt.b32"] = of<U, permuted, U, U, U>;
  to["lop3.b32"] = of<U, looked_up, U, U, U, U>;
  to["popc.b32"] = of<U, [](U a) { return U(std::popcount(a)); }, U>;
  to["clz.b32"] = of<U, [](U a) { return U(std::countl_zero(a)); }, U>;
  to["shf.l.wrap.b32"] = of<U, [](U a, U b, U n) { return U((uint64_t(b) << 32 | a) << (n & 31) >> 32); }, U, U, U>;
  to["shf.r.wrap.b32"] = of<U, [](U a, U b, U n) { return U((uint64_t(b) << 32 | a) >> (n & 31)); }, U, U, U>;
}

}  // namespace ptx
