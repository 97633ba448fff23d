// A machine that runs PTX on a CPU, so that compiled kernels are tried where there is no GPU. What a GPU lets pass, or
// answers with "illegal memory access", has a name here: an access outside of the memory that was given, or not aligned;
// a value that somebody else writes with no barrier between; a copy that nobody waited for. And it counts.
//
// The source of every instruction is NVIDIA's "Parallel Thread Execution ISA", 9.7: arithmetic, data movement, cp.async,
// mma, wgmma. It has what our kernels are compiled to; anything else is an error that names the instruction.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xFFFFFFFF;
constexpr uint32_t kSharedBase = 1024;  // where shared memory begins: nowhere else is an address of it
constexpr uint8_t kAnything = 0xFF;     // bytes that nobody wrote, or that may be others by now: NaN, and no index
using Lanes = std::array<uint64_t, kLanes>;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);
using Handlers = std::map<std::string, Handler>;

struct Operand {
  enum Kind { kRegister, kNumber, kNothing } kind = kNothing;
  uint32_t index = 0;  // of a register
  Lanes number{};      // the same for every lane
};

struct Instruction {
  Handler run = nullptr;
  int guard = -1;                              // the register of a predicate
  bool unless = false;                         // of whose opposite
  std::vector<std::vector<Operand>> operands;  // those in braces, or joined by a bar, are one
  std::array<int64_t, 2> offsets{};            // of addresses
  int target = -1;                             // of a jump
  std::string text, where;                     // as it stands there, and of what source it was made
};

// What a launch came to.
struct Counts {
  uint64_t instructions = 0;                       // of warps
  uint64_t read = 0, written = 0;                  // bytes of global memory that lanes asked for
  uint64_t sectors_read = 0, sectors_written = 0;  // pieces of 32 bytes that an instruction of a warp touches
  uint64_t shared = 0, shared_least = 0;           // passes through shared memory, and as few as there could be
  uint64_t products = 0;                           // instructions of tensor cores, of warps
};

struct Program {
  std::string name;
  std::vector<Instruction> instructions;
  uint32_t registers = 0;
  std::vector<Counts> counts;  // of each instruction, since the last launch began
};

// Registers that are known before a program begins; they come first.
extern const std::array<const char*, 11> kKnown;

Program parse(const std::string& source);

struct Range {
  uint64_t begin, end;
};

// Who touched a byte last.
struct Shadow {
  uint32_t writer_block, reader_block;  // counted from 1; 0: nobody
  uint32_t writer_epoch, reader_epoch;
  uint8_t writer_warp, reader_warp, reader_many;
};

// What a lane wants of memory; `values` are what it writes.
struct Access {
  uint64_t address;
  uint32_t size;
  const uint8_t* values;
};

// The global memory that a launch may touch; `meet`: several programs may write the same, in any order.
class Memory {
 public:
  Memory(const Range* ranges, int count, bool meet);
  ~Memory();
  Memory(const Memory&) = delete;
  // Whether what is read may be anything, since somebody else writes it.
  bool touch(Warp& warp, const Instruction& at, const Access& access);

 private:
  struct Piece {
    Range range;
    Shadow* shadows;
  };
  std::vector<Piece> pieces_;
  bool meet_;
  size_t last_ = 0;
};

struct Block {
  Program& program;
  Memory& memory;
  std::vector<uint64_t> params;
  std::array<uint32_t, 3> id, grid;
  uint32_t warps, number;
  std::vector<uint8_t> shared;
  std::vector<Shadow> shadows{};
  uint32_t epoch = 1;  // barriers that have been passed
  uint64_t steps = 0;

  // The place of some bytes of shared memory, which are checked.
  uint8_t* touch(Warp& warp, const Instruction& at, const Access& access);
};

struct Copy {
  uint32_t to;
  uint64_t from;
  uint32_t size, given;
  const Instruction* at;
};

struct Warp {
  Block& block;
  uint32_t number;
  Counts* counts = nullptr;  // of the instruction that it is at
  std::vector<Lanes> registers{};
  uint32_t live = kAll, active = 0;
  std::array<uint32_t, kLanes> counters{};
  bool together = true, waits = false;
  std::vector<Copy> open{};
  std::vector<std::vector<Copy>> groups{};

  const Lanes& get(const Operand& operand) const {
    return operand.kind == Operand::kRegister ? registers[operand.index] : operand.number;
  }
  Lanes& set(const Operand& operand) { return registers[operand.index]; }
  bool is_active(int lane) const { return active >> lane & 1; }
  void jump(uint32_t to);
  void finish_copies(size_t all_but);
  void run();  // until it ends or waits for others
};

[[noreturn]] void fail(const Warp& warp, const Instruction& at, const std::string& why);

// How often shared memory is passed for what lanes want of it, of so many bytes each.
uint32_t passes(const std::vector<uint32_t>& addresses, uint32_t size);

const Handlers& handlers();
void add_arithmetic(Handlers& to);
void add_small_numbers(Handlers& to);
void add_memory(Handlers& to);
void add_exchange(Handlers& to);
void add_products(Handlers& to);

template <class T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

}  // namespace ptx
