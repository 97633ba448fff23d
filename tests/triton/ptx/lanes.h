// Instructions that do the same in each lane, from functions of its numbers.
#pragma once
#include <cmath>

#include "machine.h"

namespace ptx {

template <class R, auto F, class... A, size_t... I>
void in_each_lane(Warp& warp, const Instruction& at, std::index_sequence<I...>) {
  const std::array<const Lanes*, sizeof...(A)> from{&warp.get(at.operands[I + 1][0])...};
  Lanes& to = warp.set(at.operands[0][0]);
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.is_active(lane)) to[lane] = bits_of<R>(F(as<A>((*from[I])[lane])...));
}

// Gives F of its operands, read as A..., written as R.
template <class R, auto F, class... A>
constexpr Handler of = [](Warp& warp, const Instruction& at) {
  if (at.operands.size() != sizeof...(A) + 1) fail(warp, at, "unexpected operands");
  in_each_lane<R, F, A...>(warp, at, std::index_sequence_for<A...>{});
};

template <class V>
bool unequal(V a, V b) {
  return a < b || a > b;
}

template <class T, class V, V (*VALUE)(T)>
void add_comparisons(Handlers& to, const std::string& type) {
  using R = uint64_t;
  const std::string name = "setp.", end = "." + type;
  to[name + "eq" + end] = of<R, [](T a, T b) { return R(VALUE(a) == VALUE(b)); }, T, T>;
  to[name + "lt" + end] = of<R, [](T a, T b) { return R(VALUE(a) < VALUE(b)); }, T, T>;
  to[name + "le" + end] = of<R, [](T a, T b) { return R(VALUE(a) <= VALUE(b)); }, T, T>;
  to[name + "gt" + end] = of<R, [](T a, T b) { return R(VALUE(a) > VALUE(b)); }, T, T>;
  to[name + "ge" + end] = of<R, [](T a, T b) { return R(VALUE(a) >= VALUE(b)); }, T, T>;
  if constexpr (std::is_integral_v<V>) {
    to[name + "ne" + end] = of<R, [](T a, T b) { return R(VALUE(a) != VALUE(b)); }, T, T>;
  } else {  // with NaN all are false but these
    to[name + "ne" + end] = of<R, [](T a, T b) { return R(unequal(VALUE(a), VALUE(b))); }, T, T>;
    to[name + "equ" + end] = of<R, [](T a, T b) { return R(!unequal(VALUE(a), VALUE(b))); }, T, T>;
    to[name + "neu" + end] = of<R, [](T a, T b) { return R(!(VALUE(a) == VALUE(b))); }, T, T>;
    to[name + "ltu" + end] = of<R, [](T a, T b) { return R(!(VALUE(a) >= VALUE(b))); }, T, T>;
    to[name + "leu" + end] = of<R, [](T a, T b) { return R(!(VALUE(a) > VALUE(b))); }, T, T>;
    to[name + "gtu" + end] = of<R, [](T a, T b) { return R(!(VALUE(a) <= VALUE(b))); }, T, T>;
    to[name + "geu" + end] = of<R, [](T a, T b) { return R(!(VALUE(a) < VALUE(b))); }, T, T>;
    to[name + "nan" + end] = of<R, [](T a, T b) { return R(VALUE(a) != VALUE(a) || VALUE(b) != VALUE(b)); }, T, T>;
    to[name + "num" + end] = of<R, [](T a, T b) { return R(VALUE(a) == VALUE(a) && VALUE(b) == VALUE(b)); }, T, T>;
  }
}

}  // namespace ptx
