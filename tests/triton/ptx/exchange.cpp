// Between the lanes of a warp, between warps, and where a program goes on.
#include <algorithm>

#include "machine.h"

namespace ptx {

namespace {

enum Direction { kIndex, kButterfly, kUp, kDown };

template <Direction DIRECTION>
void shuffle(Warp& warp, const Instruction& at) {
  const Lanes from = warp.get(at.operands[1][0]), by = warp.get(at.operands[2][0]), c = warp.get(at.operands[3][0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    const int clamp = c[lane] & 31, segment = c[lane] >> 8 & 31, b = by[lane] & 31;
    const int last = (lane & segment) | (clamp & ~segment);
    int other = DIRECTION == kIndex       ? (lane & segment) | (b & ~segment)
                : DIRECTION == kButterfly ? lane ^ b
                : DIRECTION == kUp        ? lane - b
                                          : lane + b;
    const bool good = DIRECTION == kUp ? other >= last : other <= last;
    if (!good) other = lane;
    if (!warp.is_active(other)) fail(warp, at, "from a lane that takes no part");
    warp.set(at.operands[0][0])[lane] = static_cast<uint32_t>(from[other]);
    if (at.operands[0].size() > 1) warp.set(at.operands[0][1])[lane] = good;
  }
}

void give_all(Warp& warp, const Instruction& at, uint64_t value) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.is_active(lane)) warp.set(at.operands[0][0])[lane] = value;
}

void ballot(Warp& warp, const Instruction& at) {
  uint32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.is_active(lane) && warp.get(at.operands[1][0])[lane]) found |= 1u << lane;
  give_all(warp, at, found);
}

template <class T, auto F>
void reduce(Warp& warp, const Instruction& at) {
  T found{};
  bool first = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    const T mine = as<T>(warp.get(at.operands[1][0])[lane]);
    found = std::exchange(first, false) ? mine : F(found, mine);
  }
  give_all(warp, at, bits_of(found));
}

// Additions meet each other where they like, so that only the place is checked.
void add_in_shared(Warp& warp, const Instruction& at) {
  auto& shared = warp.block.shared;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    const uint64_t place = warp.get(at.operands[1][0])[lane] + uint64_t(at.offsets[0]) - kSharedBase;
    if (place + 4 > shared.size()) fail(warp, at, "outside of shared memory");
    uint32_t before;
    std::memcpy(&before, &shared[place], 4);
    const auto after = static_cast<uint32_t>(before + warp.get(at.operands[2][0])[lane]);
    std::memcpy(&shared[place], &after, 4);
    warp.set(at.operands[0][0])[lane] = before;
  }
}

void barrier(Warp& warp, const Instruction& at) {
  if (warp.active != warp.live) fail(warp, at, "some lanes do not come to this barrier");
  warp.waits = true;
}

template <class T>
void add_reductions(Handlers& to, const std::string& type) {
  to["redux.sync.add." + type] = reduce<T, [](T a, T b) { return T(uint32_t(a) + uint32_t(b)); }>;
  to["redux.sync.max." + type] = reduce<T, [](T a, T b) { return std::max(a, b); }>;
  to["redux.sync.min." + type] = reduce<T, [](T a, T b) { return std::min(a, b); }>;
}

}  // namespace

void add_exchange(Handlers& to) {
  to["shfl.sync.bfly.b32"] = shuffle<kButterfly>, to["shfl.sync.idx.b32"] = shuffle<kIndex>;
  to["shfl.sync.up.b32"] = shuffle<kUp>, to["shfl.sync.down.b32"] = shuffle<kDown>;
  to["vote.sync.ballot.b32"] = ballot;
  add_reductions<int32_t>(to, "s32"), add_reductions<uint32_t>(to, "u32");
  to["redux.sync.or.b32"] = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a | b; }>;
  to["redux.sync.and.b32"] = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a & b; }>;
  to["atom.shared.add.u32"] = add_in_shared;
  to["bar.sync"] = barrier;
  to["bra"] = to["bra.uni"] = [](Warp& warp, const Instruction& at) { warp.jump(uint32_t(at.target)); };
  to["ret"] = to["exit"] = [](Warp& warp, const Instruction&) { warp.live &= ~warp.active; };
  for (const char* name : {"bar.warp.sync", "createpolicy.fractional.L2::evict_first.b64",
                           "createpolicy.fractional.L2::evict_last.b64"})
    to[name] = [](Warp&, const Instruction&) {};  // lanes of a warp go in step; caches are not modelled
}

}  // namespace ptx
