// Tensor cores: products by one warp (mma), and by four whose matrices lie in shared memory (wgmma).
#include "small_numbers.h"

namespace ptx {

namespace {

// How the bits of a register are read: numbers of SIZE bytes as double, in which products are exact.
struct OfBrain {
  static constexpr int kSize = 2;
  static double read(uint64_t bits) { return Brain{static_cast<uint16_t>(bits)}.value(); }
};
struct OfHalf {
  static constexpr int kSize = 2;
  static double read(uint64_t bits) { return Half{static_cast<uint16_t>(bits)}.value(); }
};
struct OfTf32 {
  static constexpr int kSize = 4;
  static double read(uint64_t bits) { return double(as<float>(bits & 0xFFFFE000)); }
};
struct OfE4m3 {
  static constexpr int kSize = 1;
  static double read(uint64_t bits) { return E4m3{static_cast<uint8_t>(bits)}.value(); }
};
struct OfE5m2 {
  static constexpr int kSize = 1;
  static double read(uint64_t bits) { return E5m2{static_cast<uint8_t>(bits)}.value(); }
};
struct OfInt8 {
  static constexpr int kSize = 1;
  static double read(uint64_t bits) { return double(static_cast<int8_t>(bits)); }
};

// 16 rows of A in four registers of each lane: the halves of the rows, then the halves of the depth.
template <class T, int DEPTH>
void read_rows(const Warp& warp, const std::vector<Operand>& from, double (&a)[16][DEPTH]) {
  constexpr int per = 4 / T::kSize;
  for (int lane = 0; lane < kLanes; ++lane)
    for (int part = 0; part < 4; ++part)
      for (int i = 0; i < per; ++i)
        a[lane / 4 + part % 2 * 8][lane % 4 * per + i + part / 2 * 4 * per] =
            T::read(warp.get(from[part])[lane] >> (8 * T::kSize * i));
}

// D = A B + C of 16 rows and 8 columns, by a warp.
template <class T, class C>
void product(Warp& warp, const Instruction& at) {
  constexpr int per = 4 / T::kSize, depth = 8 * per;
  if (warp.active != kAll) fail(warp, at, "not by all lanes");
  warp.counts->products++;
  double a[16][depth], b[depth][8];
  read_rows<T>(warp, at.operands[1], a);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int part = 0; part < 2; ++part)
      for (int i = 0; i < per; ++i)
        b[lane % 4 * per + i + part * 4 * per][lane / 4] =
            T::read(warp.get(at.operands[2][part])[lane] >> (8 * T::kSize * i));
  for (int lane = 0; lane < kLanes; ++lane)
    for (int part = 0; part < 4; ++part) {
      const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
      double sum = double(as<C>(warp.get(at.operands[3][part])[lane]));
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      warp.set(at.operands[0][part])[lane] = bits_of(static_cast<C>(sum));
    }
}

// Where a matrix lies in shared memory ("matrix descriptor"): rows of 16 to 128 bytes, eight of them a piece, whose
// parts of 16 bytes are exchanged by bits of their address.
struct Descriptor {
  uint64_t bits;
  uint32_t part(int at) const { return static_cast<uint32_t>(bits >> at & 0x3FFF) << 4; }
  uint32_t width() const { return std::array{16u, 128u, 64u, 32u}[bits >> 62]; }

  // Of a number of `size` bytes: `line` counts along rows of A or columns of B. Those lie beside each other where the
  // matrix is `turned`; otherwise numbers of one line do, along the depth.
  uint32_t address(uint32_t line, uint32_t depth, uint32_t size, bool turned) const {
    const uint32_t leading = part(16), stride = part(32);
    const uint32_t across = (turned ? line : depth) * size, along = turned ? depth : line;
    const bool swapped = turned && width() == 16;
    const uint32_t address = part(0) + along % 8 * width() + across % width() +
                             along / 8 * (swapped ? leading : stride) + across / width() * (swapped ? stride : leading);
    return address ^ (address >> 7 & (width() / 16 - 1)) << 4;
  }
};

// D = A B + D of 64 rows and so many columns, by four warps, each of which has 16 rows. It is computed when it begins.
template <class T, class C, int COLUMNS>
void group_product(Warp& warp, const Instruction& at) {
  constexpr int depth = 32 / T::kSize;
  if (warp.active != kAll) fail(warp, at, "not by all lanes");
  warp.counts->products++;
  const size_t count = at.operands.size();
  const auto number = [&](size_t which) { return warp.get(at.operands[which][0])[0]; };
  const bool in_registers = at.operands[1].size() == 4, keeps = number(3), can_turn = T::kSize == 2;
  if (count != size_t(std::is_same_v<C, float> ? 6 : 4) + (can_turn ? 2 - in_registers : 0))
    fail(warp, at, "unexpected operands");
  if (std::is_same_v<C, float> && (number(4) != 1 || number(5) != 1)) fail(warp, at, "negated matrices are not known");
  const auto read = [&](Descriptor from, int line, int k, bool turned) {
    uint64_t bits = 0;
    const Access access{from.address(uint32_t(line), uint32_t(k), T::kSize, turned), T::kSize, nullptr};
    std::memcpy(&bits, warp.block.touch(warp, at, access), T::kSize);
    return T::read(bits);
  };
  double a[16][depth], b[depth][COLUMNS];
  if (in_registers) read_rows<T>(warp, at.operands[1], a);
  for (int k = 0; k < depth; ++k) {
    for (int row = 0; row < 16 && !in_registers; ++row)
      a[row][k] = read({number(1)}, int(warp.number % 4) * 16 + row, k, can_turn && number(6));
    for (int column = 0; column < COLUMNS; ++column)
      b[k][column] = read({number(2)}, column, k, can_turn && number(count - 1));
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < COLUMNS; ++column) {
      const int i = column / 8 * 4 + row / 8 * 2 + column % 2, lane = row % 8 * 4 + column % 8 / 2;
      uint64_t& to = warp.set(at.operands[0][i])[lane];
      double sum = keeps ? double(as<C>(to)) : 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      to = bits_of(static_cast<C>(sum));
    }
}

template <int COLUMNS>
void add_group_products(Handlers& to) {
  const std::string name = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(COLUMNS);
  to[name + "k16.f32.bf16.bf16"] = group_product<OfBrain, float, COLUMNS>;
  to[name + "k16.f32.f16.f16"] = group_product<OfHalf, float, COLUMNS>;
  to[name + "k8.f32.tf32.tf32"] = group_product<OfTf32, float, COLUMNS>;
  to[name + "k32.f32.e4m3.e4m3"] = group_product<OfE4m3, float, COLUMNS>;
  to[name + "k32.f32.e5m2.e5m2"] = group_product<OfE5m2, float, COLUMNS>;
  to[name + "k32.s32.s8.s8"] = group_product<OfInt8, int32_t, COLUMNS>;
}

}  // namespace

void add_products(Handlers& to) {
  const std::string name = "mma.sync.aligned.m16n8";
  to[name + "k16.row.col.f32.bf16.bf16.f32"] = product<OfBrain, float>;
  to[name + "k16.row.col.f32.f16.f16.f32"] = product<OfHalf, float>;
  to[name + "k8.row.col.f32.tf32.tf32.f32"] = product<OfTf32, float>;
  to[name + "k32.row.col.f32.e4m3.e4m3.f32"] = product<OfE4m3, float>;
  to[name + "k32.row.col.f32.e5m2.e5m2.f32"] = product<OfE5m2, float>;
  to[name + "k32.row.col.satfinite.s32.s8.s8.s32"] = product<OfInt8, int32_t>;
  add_group_products<8>(to), add_group_products<16>(to), add_group_products<32>(to);
  add_group_products<64>(to), add_group_products<128>(to), add_group_products<256>(to);
  for (const std::string step : {"fence", "commit_group", "wait_group"})
    to["wgmma." + step + ".sync.aligned"] = [](Warp&, const Instruction&) {};
  to["fence.proxy.async.shared::cta"] = [](Warp&, const Instruction&) {};
}

}  // namespace ptx
