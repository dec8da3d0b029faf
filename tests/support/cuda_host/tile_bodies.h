// What TileLang's bodies for C are called with.
#include <cmath>
#include <cstdlib>

namespace {

struct Call {
  const Instruction* ins;
  const Step* step;
  const uint64_t* operands;
  void* scratch;

  int tile(int i) const { return ins->tile[i]; }
  template <class E>
  E* arg(int i) const {
    return reinterpret_cast<E*>(operands[i]);
  }
};

}  // namespace
