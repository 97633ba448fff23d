// Programs of a grid one after the other; the warps of a program in turn, from barrier to barrier.
#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <sstream>

namespace ptx {

namespace {

constexpr uint64_t kMostSteps = 400'000'000;

}  // namespace

void fail(const Warp& warp, const Instruction& at, const std::string& why) {
  std::ostringstream said;
  const Block& block = warp.block;
  said << block.program.name << ", program " << block.id[0] << "," << block.id[1] << "," << block.id[2] << ", warp "
       << warp.number << ": " << why << ": " << at.text;
  throw Error(said.str());
}

void Warp::jump(uint32_t to) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (is_active(lane)) counters[lane] = to;
  together = together && active == live;
}

void Warp::finish_copies(size_t all_but) {
  while (groups.size() > all_but) {
    for (const Copy& each : groups.front()) {
      uint8_t values[16]{};
      std::memcpy(values, reinterpret_cast<const void*>(each.from), each.given);
      std::memcpy(block.touch(*this, *each.at, {each.to, each.size, values}), values, each.size);
    }
    groups.erase(groups.begin());
  }
}

void Warp::run() {
  const auto& instructions = block.program.instructions;
  for (waits = false; live && !waits;) {
    uint32_t at = counters[std::countr_zero(live)], here = live;
    if (!together) {  // those that are furthest behind go on, until they meet the others
      for (int lane = 0; lane < kLanes; ++lane)
        if (live >> lane & 1) at = std::min(at, counters[lane]);
      for (int lane = 0; lane < kLanes; ++lane)
        if (counters[lane] != at) here &= ~(1u << lane);
      together = here == live;
    }
    if (at >= instructions.size()) throw Error(block.program.name + " runs past its end");
    const Instruction& one = instructions[at];
    active = here;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!(here >> lane & 1)) continue;
      counters[lane] = at + 1;
      if (one.guard >= 0 && (registers[one.guard][lane] != 0) == one.unless) active &= ~(1u << lane);
    }
    counts = &block.program.counts[at];
    counts->instructions++;
    if (active) one.run(*this, one);
    if (++block.steps > kMostSteps) throw Error(block.program.name + " does not end");
  }
}

namespace {

Warp beginning(Block& block, uint32_t number) {
  Warp warp{block, number};
  warp.registers.resize(block.program.registers);
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const uint64_t known[]{number * kLanes + lane, 0, 0, block.id[0], block.id[1], block.id[2], block.grid[0],
                           block.grid[1], block.grid[2], block.warps * kLanes, lane};
    static_assert(std::size(known) == kKnown.size());
    for (size_t i = 0; i < std::size(known); ++i) warp.registers[i][lane] = known[i];
  }
  return warp;
}

void run(Block& block, bool backwards) {
  std::vector<Warp> warps;
  for (uint32_t i = 0; i < block.warps; ++i)
    warps.push_back(beginning(block, backwards ? block.warps - 1 - i : i));
  for (bool more = true; more; ++block.epoch) {
    more = false;
    for (Warp& warp : warps) {
      if (warp.live) warp.run();
      more |= warp.live != 0;
    }
  }
}

}  // namespace
}  // namespace ptx

extern "C" {

// A program, or null where `error`, of so much room, says why there is none.
void* ptx_load(const char* source, char* error, int room) {
  try {
    return new ptx::Program(ptx::parse(source));
  } catch (const std::exception& why) {
    std::snprintf(error, static_cast<size_t>(room), "%s", why.what());
    return nullptr;
  }
}

// Runs a grid of programs of so many warps and bytes of shared memory, which may touch some ranges of memory.
// What comes out must not depend on the order of programs and warps: it can be turned. 0, or 1 where `error` says what went wrong.
int ptx_run(void* loaded, const uint32_t* grid, uint32_t warps, uint32_t shared, int backwards, int meet,
            const uint64_t* params, int given, const ptx::Range* ranges, int pieces, char* error, int room) {
  auto& program = *static_cast<ptx::Program*>(loaded);
  try {
    program.counts.assign(program.instructions.size(), {});
    ptx::Memory memory(ranges, pieces, meet);
    const uint32_t all = grid[0] * grid[1] * grid[2];
    for (uint32_t i = 0; i < all; ++i) {
      const uint32_t at = backwards ? all - 1 - i : i;
      ptx::Block block{program,
                       memory,
                       {params, params + given},
                       {at % grid[0], at / grid[0] % grid[1], at / grid[0] / grid[1]},
                       {grid[0], grid[1], grid[2]},
                       warps,
                       at,
                       std::vector<uint8_t>(shared, ptx::kAnything)};
      block.shadows.resize(shared);
      ptx::run(block, backwards);
    }
    return 0;
  } catch (const std::exception& why) {
    std::snprintf(error, static_cast<size_t>(room), "%s", why.what());
    return 1;
  }
}

// What each instruction came to in the last launch.
void ptx_counts(const void* loaded, ptx::Counts* counts) {
  const auto& program = *static_cast<const ptx::Program*>(loaded);
  std::copy(program.counts.begin(), program.counts.end(), counts);
}

// An instruction as it stands in the text; or where it comes from.
const char* ptx_text(const void* loaded, int at, int where) {
  const auto& one = static_cast<const ptx::Program*>(loaded)->instructions[at];
  return (where ? one.where : one.text).c_str();
}

int ptx_size(const void* loaded) {
  return static_cast<int>(static_cast<const ptx::Program*>(loaded)->instructions.size());
}
}
