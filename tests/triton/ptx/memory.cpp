// Global and shared memory: who may touch what, and the instructions that do.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <sstream>

#include "machine.h"

namespace ptx {

namespace {

// Whether what is read may be anything, since somebody else wrote it and no barrier lies between. In global memory that
// is no fault by itself: threads that only repeat what others do read as well, and use nothing of it. In shared memory it
// is one. To write what is there already does no harm: threads that hold the same numbers often all write them; nor does
// any writing of global memory where programs may `meet`.
bool mark(Shadow& shadow, const Warp& warp, const Instruction& at, bool write, bool same, bool shared, bool meet) {
  const uint32_t block = warp.block.number + 1, epoch = warp.block.epoch;
  const auto race = [&](const std::string& what) {
    fail(warp, at, what + ", with no barrier between, in " + (shared ? "shared" : "global") + " memory");
  };
  const bool other_block = shadow.writer_block && shadow.writer_block != block;
  const bool other_warp =
      shadow.writer_block == block && shadow.writer_warp != warp.number && shadow.writer_epoch == epoch;
  const bool read_now = shadow.reader_block == block && shadow.reader_epoch == epoch;
  if (!write) {
    if (shared && other_warp) race("another warp writes what is read");
    shadow.reader_many = read_now && (shadow.reader_many || shadow.reader_warp != warp.number);
    shadow.reader_block = block, shadow.reader_epoch = epoch, shadow.reader_warp = static_cast<uint8_t>(warp.number);
    return other_block || other_warp;
  }
  if (other_block && !meet) race("another program writes what is written");
  if (other_warp && !same && !meet) race("another warp writes what is written");
  if (shared && read_now && (shadow.reader_many || shadow.reader_warp != warp.number))
    race("another warp reads what is written");
  shadow.writer_block = block, shadow.writer_epoch = epoch, shadow.writer_warp = static_cast<uint8_t>(warp.number);
  return false;
}

}  // namespace

Memory::Memory(const Range* ranges, int count, bool meet) : meet_(meet) {
  std::vector<Range> sorted(ranges, ranges + count);
  std::sort(sorted.begin(), sorted.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (const Range& range : sorted) {
    if (!pieces_.empty() && range.begin < pieces_.back().range.end)
      pieces_.back().range.end = std::max(pieces_.back().range.end, range.end);
    else
      pieces_.push_back({range, nullptr});
  }
  for (Piece& piece : pieces_)
    piece.shadows = static_cast<Shadow*>(std::calloc(piece.range.end - piece.range.begin, sizeof(Shadow)));
}

Memory::~Memory() {
  for (Piece& piece : pieces_) std::free(piece.shadows);
}

bool Memory::touch(Warp& warp, const Instruction& at, const Access& access) {
  const auto [address, size, values] = access;
  if (address % std::bit_ceil(size)) fail(warp, at, "address " + std::to_string(address) + " is not aligned");
  for (size_t tried = 0; tried < pieces_.size(); ++tried) {
    const size_t which = (last_ + tried) % pieces_.size();
    const auto [range, shadows] = pieces_[which];
    if (address < range.begin || address + size > range.end) continue;
    last_ = which;
    bool anything = false;
    for (uint32_t i = 0; i < size; ++i) {
      const bool same = values && values[i] == reinterpret_cast<const uint8_t*>(address)[i];
      anything |= mark(shadows[address - range.begin + i], warp, at, values, same, false, meet_);
    }
    return anything;
  }
  std::ostringstream why;
  why << "outside of the memory that was given, " << size << " bytes at " << address << "; given:";
  for (const Piece& piece : pieces_) why << " " << piece.range.begin << "-" << piece.range.end;
  fail(warp, at, why.str());
}

uint8_t* Block::touch(Warp& warp, const Instruction& at, const Access& access) {
  const uint32_t address = static_cast<uint32_t>(access.address), place = address - kSharedBase;
  if (address < kSharedBase || uint64_t(place) + access.size > shared.size())
    fail(warp, at, "outside of shared memory, byte " + std::to_string(static_cast<int32_t>(place)));
  if (address % std::bit_ceil(access.size)) fail(warp, at, "byte " + std::to_string(place) + " is not aligned");
  for (uint32_t i = 0; i < access.size; ++i)
    mark(shadows[place + i], warp, at, access.values, access.values && access.values[i] == shared[place + i], true, false);
  return shared.data() + place;
}

uint32_t passes(const std::vector<uint32_t>& addresses, uint32_t size) {
  const size_t together = size <= 4 ? 32 : 128 / size;
  uint32_t found = 0;
  for (size_t begin = 0; begin < addresses.size(); begin += together) {
    std::array<std::vector<uint32_t>, 32> banks;
    for (size_t i = begin; i < std::min(begin + together, addresses.size()); ++i)
      for (uint32_t word = addresses[i] / 4; word <= (addresses[i] + size - 1) / 4; ++word) {
        auto& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.size());
    found += static_cast<uint32_t>(most);
  }
  return found;
}

namespace {

// Where the lanes that take part begin.
std::vector<uint64_t> addresses_of(const Warp& warp, const Instruction& at, size_t operand, size_t which = 0) {
  std::vector<uint64_t> found;
  const Lanes& base = warp.get(at.operands[operand][0]);
  for (int lane = 0; lane < kLanes; ++lane)
    if (warp.is_active(lane)) found.push_back(base[lane] + static_cast<uint64_t>(at.offsets[which]));
  return found;
}

void count_global(Warp& warp, std::vector<uint64_t> addresses, uint32_t size, bool write) {
  Counts& counts = *warp.counts;
  (write ? counts.written : counts.read) += addresses.size() * size;
  for (uint64_t& each : addresses) each /= 32;  // a piece holds all of an aligned access
  std::sort(addresses.begin(), addresses.end());
  const auto sectors = std::unique(addresses.begin(), addresses.end()) - addresses.begin();
  (write ? counts.sectors_written : counts.sectors_read) += static_cast<uint64_t>(sectors);
}

void count_shared(Warp& warp, const std::vector<uint64_t>& addresses, uint32_t size) {
  const std::vector<uint32_t> places(addresses.begin(), addresses.end());
  warp.counts->shared += passes(places, size);
  warp.counts->shared_least += (places.size() * size + 127) / 128;
}

// SIGNED: the numbers are extended to the register.
template <int SIZE, int COUNT, bool SHARED, bool SIGNED = false>
void load(Warp& warp, const Instruction& at) {
  constexpr uint32_t size = SIZE * COUNT;
  const std::vector<uint64_t> addresses = addresses_of(warp, at, 1);
  SHARED ? count_shared(warp, addresses, size) : count_global(warp, addresses, size, false);
  auto address = addresses.begin();
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    const Access access{*address++, size, nullptr};
    uint8_t found[size];
    if (SHARED) std::memcpy(found, warp.block.touch(warp, at, access), size);
    else if (warp.block.memory.touch(warp, at, access)) std::memset(found, kAnything, size);
    else std::memcpy(found, reinterpret_cast<const void*>(access.address), size);
    for (int i = 0; i < COUNT; ++i) {
      uint64_t value = 0;
      std::memcpy(&value, found + i * SIZE, SIZE);
      if (SIGNED && value >> (8 * SIZE - 1) & 1) value |= ~0ull << (8 * SIZE);
      if (at.operands[0][i].kind == Operand::kRegister) warp.set(at.operands[0][i])[lane] = value;
    }
  }
}

template <int SIZE, int COUNT, bool SHARED>
void store(Warp& warp, const Instruction& at) {
  constexpr uint32_t size = SIZE * COUNT;
  const std::vector<uint64_t> addresses = addresses_of(warp, at, 0);
  SHARED ? count_shared(warp, addresses, size) : count_global(warp, addresses, size, true);
  auto address = addresses.begin();
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    uint8_t values[size];
    for (int i = 0; i < COUNT; ++i) std::memcpy(values + i * SIZE, &warp.get(at.operands[1][i])[lane], SIZE);
    const Access access{*address++, size, values};
    uint8_t* to = reinterpret_cast<uint8_t*>(access.address);
    if (SHARED) to = warp.block.touch(warp, at, access);
    else warp.block.memory.touch(warp, at, access);
    std::memcpy(to, values, size);
  }
}

template <class T>
void load_param(Warp& warp, const Instruction& at) {
  const uint64_t which = at.operands[1][0].number[0];
  if (which >= warp.block.params.size()) fail(warp, at, "there are fewer parameters");
  for (int lane = 0; lane < kLanes; ++lane)  // a signed one may go into a wider register
    if (warp.is_active(lane)) warp.set(at.operands[0][0])[lane] = uint64_t(int64_t(as<T>(warp.block.params[which])));
}

// cp.async: nothing arrives before somebody waits for it.
void copy(Warp& warp, const Instruction& at) {
  const std::vector<uint64_t> to = addresses_of(warp, at, 0, 0), from = addresses_of(warp, at, 1, 1);
  const auto size = static_cast<uint32_t>(at.operands[2][0].number[0]);
  count_shared(warp, to, size);
  std::vector<uint64_t> read;
  for (int lane = 0, i = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    const auto given = at.operands.size() < 4 ? size : static_cast<uint32_t>(warp.get(at.operands[3][0])[lane]);
    if (given > size) fail(warp, at, "reads more than it writes");
    if (given && warp.block.memory.touch(warp, at, {from[i], given, nullptr}))
      fail(warp, at, "another warp or program writes what is copied");
    if (given) read.push_back(from[i]);
    warp.open.push_back({static_cast<uint32_t>(to[i]), from[i], size, given, &at});
    ++i;
  }
  count_global(warp, read, size, false);
}

void commit(Warp& warp, const Instruction&) { warp.groups.push_back(std::exchange(warp.open, {})); }

void wait(Warp& warp, const Instruction& at) { warp.finish_copies(at.operands[0][0].number[0]); }

void wait_all(Warp& warp, const Instruction& at) {
  commit(warp, at);
  warp.finish_copies(0);
}

// Eight rows of eight 16-bit numbers, of which a lane has two beside each other in a row, or in a column.
struct Tile {
  uint16_t rows[8][8];
  uint16_t& of(int lane, int i, bool transposed) {
    const int row = lane / 4, column = lane % 4 * 2 + i;
    return transposed ? rows[column][row] : rows[row][column];
  }
};

template <int COUNT, bool TRANSPOSED>
void load_matrix(Warp& warp, const Instruction& at) {
  if (warp.active != kAll) fail(warp, at, "not by all lanes");
  const std::vector<uint64_t> addresses = addresses_of(warp, at, 1);
  count_shared(warp, {addresses.begin(), addresses.begin() + 8 * COUNT}, 16);
  for (int matrix = 0; matrix < COUNT; ++matrix) {
    Tile tile;
    for (int row = 0; row < 8; ++row)
      std::memcpy(tile.rows[row], warp.block.touch(warp, at, {addresses[matrix * 8 + row], 16, nullptr}), 16);
    for (int lane = 0; lane < kLanes; ++lane)
      warp.set(at.operands[0][matrix])[lane] =
          tile.of(lane, 0, TRANSPOSED) | uint32_t(tile.of(lane, 1, TRANSPOSED)) << 16;
  }
}

template <int COUNT, bool TRANSPOSED>
void store_matrix(Warp& warp, const Instruction& at) {
  if (warp.active != kAll) fail(warp, at, "not by all lanes");
  const std::vector<uint64_t> addresses = addresses_of(warp, at, 0);
  count_shared(warp, {addresses.begin(), addresses.begin() + 8 * COUNT}, 16);
  for (int matrix = 0; matrix < COUNT; ++matrix) {
    Tile tile;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < 2; ++i)
        tile.of(lane, i, TRANSPOSED) = static_cast<uint16_t>(warp.get(at.operands[1][matrix])[lane] >> (16 * i));
    for (int row = 0; row < 8; ++row) {
      const auto* values = reinterpret_cast<const uint8_t*>(tile.rows[row]);
      std::memcpy(warp.block.touch(warp, at, {addresses[matrix * 8 + row], 16, values}), values, 16);
    }
  }
}

template <int SIZE, int COUNT>
void add_accesses(Handlers& to, const std::string& type) {
  for (const std::string hint : {"", ".L1::evict_first.L2::cache_hint", ".L1::evict_last.L2::cache_hint"}) {
    to["ld.global" + hint + type] = load<SIZE, COUNT, false>;
    to["st.global" + hint + type] = store<SIZE, COUNT, false>;
  }
  to["ld.shared" + type] = load<SIZE, COUNT, true>;
  to["st.shared" + type] = store<SIZE, COUNT, true>;
}

template <int SIZE>
void add_widths(Handlers& to, const std::string& type) {
  add_accesses<SIZE, 1>(to, type), add_accesses<SIZE, 2>(to, ".v2" + type), add_accesses<SIZE, 4>(to, ".v4" + type);
}

template <int COUNT>
void add_matrices(Handlers& to) {
  const std::string shape = "matrix.sync.aligned.m8n8.x" + std::to_string(COUNT);
  to["ld" + shape + ".shared.b16"] = load_matrix<COUNT, false>;
  to["ld" + shape + ".trans.shared.b16"] = load_matrix<COUNT, true>;
  to["st" + shape + ".shared.b16"] = store_matrix<COUNT, false>;
  to["st" + shape + ".trans.shared.b16"] = store_matrix<COUNT, true>;
}

}  // namespace

void add_memory(Handlers& to) {
  add_widths<1>(to, ".b8"), add_widths<2>(to, ".b16"), add_widths<4>(to, ".b32"), add_widths<8>(to, ".b64");
  to["ld.shared.s8"] = load<1, 1, true, true>, to["ld.shared.s16"] = load<2, 1, true, true>;
  to["ld.global.s8"] = load<1, 1, false, true>, to["ld.global.s16"] = load<2, 1, false, true>;
  for (const std::string space : {"shared", "global"})
    for (const auto& [type, bits] : {std::pair{".u8", ".b8"}, {".u16", ".b16"}, {".u32", ".b32"}})
      to["ld." + space + type] = to["ld." + space + bits];
  add_matrices<1>(to), add_matrices<2>(to), add_matrices<4>(to);
  to["ld.param.b8"] = to["ld.param.u8"] = load_param<uint8_t>, to["ld.param.b16"] = load_param<uint16_t>;
  to["ld.param.b32"] = to["ld.param.u32"] = to["ld.param.f32"] = load_param<uint32_t>;
  to["ld.param.s32"] = load_param<int32_t>, to["ld.param.b64"] = to["ld.param.u64"] = load_param<uint64_t>;
  to["cp.async.ca.shared.global"] = to["cp.async.cg.shared.global"] = copy;
  to["cp.async.commit_group"] = commit, to["cp.async.wait_group"] = wait, to["cp.async.wait_all"] = wait_all;
}

}  // namespace ptx
