// Arithmetic and conversions of fp16, bf16 and fp8, one and two at a time.
#include "small_numbers.h"

#include "lanes.h"

namespace ptx {

namespace {

template <class T>
struct Two {
  T low, high;
};

template <class T, auto F>
constexpr auto in_both = [](auto... pairs) { return Two<T>{F(pairs.low...), F(pairs.high...)}; };

template <class T, auto F, class... A>
void add_one_and_two(Handlers& to, const std::string& name) {
  to[name] = of<T, F, A...>;
  to[name + "x2"] = of<Two<T>, in_both<T, F>, Two<A>...>;
}

template <class T>
double value_of(T x) {
  return x.value();
}

template <class T>
void add_sixteen_bits(Handlers& to, const std::string& type) {
  for (const std::string rounding : {".", ".rn."}) {
    const std::string end = rounding + type;
    add_one_and_two<T, [](T a, T b) { return T::of(a.value() + b.value()); }, T, T>(to, "add" + end);
    add_one_and_two<T, [](T a, T b) { return T::of(a.value() - b.value()); }, T, T>(to, "sub" + end);
    add_one_and_two<T, [](T a, T b) { return T::of(a.value() * b.value()); }, T, T>(to, "mul" + end);
    add_one_and_two<T, [](T a, T b, T c) { return T::of(a.value() * b.value() + c.value()); }, T, T, T>(to, "fma" + end);
  }
  add_one_and_two<T, [](T a) { return T{uint16_t(a.bits & 0x7FFF)}; }, T>(to, "abs." + type);
  add_one_and_two<T, [](T a) { return T{uint16_t(a.bits ^ 0x8000)}; }, T>(to, "neg." + type);
  add_one_and_two<T, [](T a, T b) { return T::of(std::fmax(a.value(), b.value())); }, T, T>(to, "max." + type);
  add_one_and_two<T, [](T a, T b) { return T::of(std::fmin(a.value(), b.value())); }, T, T>(to, "min." + type);
  add_comparisons<T, double, value_of<T>>(to, type);
  to["cvt.f32." + type] = of<float, [](T a) { return float(a.value()); }, T>;
  to["cvt.rn." + type + ".f32"] = of<T, [](float a) { return T::of(a); }, float>;
  to["cvt.rn." + type + "x2.f32"] = of<Two<T>, [](float a, float b) { return Two<T>{T::of(b), T::of(a)}; }, float, float>;
  to["cvt.rn." + type + ".s16"] = of<T, [](int16_t a) { return T::of(a); }, int16_t>;
  to["cvt.rn." + type + ".u16"] = of<T, [](uint16_t a) { return T::of(a); }, uint16_t>;
  to["cvt.rn." + type + ".s32"] = of<T, [](int32_t a) { return T::of(a); }, int32_t>;
}

template <class T>
void add_eight_bits(Handlers& to, const std::string& type) {
  to["cvt.rn.satfinite." + type + "x2.f32"] =
      of<Two<T>, [](float a, float b) { return Two<T>{T::of(b), T::of(a)}; }, float, float>;
  to["cvt.rn.f16x2." + type + "x2"] = of<Two<Half>, in_both<Half, [](T a) { return Half::of(a.value()); }>, Two<T>>;
}

// Rounded towards zero.
Half cut(float a) {
  const Half near = Half::of(a);
  return std::fabs(near.value()) > std::fabs(double(a)) ? Half{static_cast<uint16_t>(near.bits - 1)} : near;
}

}  // namespace

void add_small_numbers(Handlers& to) {
  add_sixteen_bits<Half>(to, "f16"), add_sixteen_bits<Brain>(to, "bf16");
  add_eight_bits<E4m3>(to, "e4m3"), add_eight_bits<E5m2>(to, "e5m2");
  to["cvt.rz.f16.f32"] = of<Half, cut, float>;
}

}  // namespace ptx
