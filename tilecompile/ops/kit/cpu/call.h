// What a task body sees of its instruction: operands, tile coordinates, weights, the step, private scratch memory.
#pragma once

struct Scratch {
  char* base;        // private to the thread, `Launch::scratch_bytes` long, 64-byte aligned
  const void* norm_x = nullptr;  // what `base` holds at the moment: see rms_norm/cpu.h
  const void* norm_w = nullptr;
  int norm_tokens = 0;
  uint32_t norm_sequence = 0;
};

struct Call {
  const Instruction* ins;
  const Step* step;
  const Operand* operands;
  const TapeRun* tape;
  char* const* buffers;
  const char* pool;
  Scratch* scratch;

  int tile(int i) const { return ins->tile[i]; }

  // How many tokens the operator works on, from an operand i whose rows are tokens. A program is made for steps of at
  // most T tokens, and a step carries n <= T of them: every body works on its operands' first tokens(i) rows only, and
  // neither reads nor writes the others. An operator of fewer rows than the step has tokens (one row of them, say)
  // works on all of its rows. T is in no body, so programs of any T share the task kinds.
  int tokens(int i) const {
    const uint32_t rows = operands[ins->operand_begin + i].rows;
    return int(rows < step->tokens ? rows : step->tokens);
  }
  // Address of operand i.
  template <class E>
  E* arg(int i) const {
    const Operand& o = operands[ins->operand_begin + i];
    return reinterpret_cast<E*>(buffers[o.buffer] + o.offset);
  }
  // Address of the instruction's weight run i; `expert` chooses the tile of a run that is addressed through a slot.
  template <class W>
  const W* weights(int i, int expert = 0) const {
    const TapeRun& r = tape[ins->tape_begin + i];
    return reinterpret_cast<const W*>(pool + r.offset + r.stride * uint64_t(expert));
  }
};

// `body(tokens)`, for one token with a number that the compiler knows: most steps have one, and then the loops over tokens
// cost nothing.
template <class Body>
inline void by_tokens(int tokens, Body&& body) {
  if (tokens == 1)
    body(std::integral_constant<int, 1>());
  else
    body(tokens);
}

// Which positions of the sequence an operator's caches hold: of blocks of BLOCK positions every COUNT-th, from block
// `index` on (ops/context.py); Context<1, 1>{0} is all of them.
template <int COUNT, int BLOCK>
struct Context {
  int index;

  // How many of the first n positions: their rows are the first.
  int rows(int n) const {
    if constexpr (COUNT == 1) return n;
    const int rest = n % (COUNT * BLOCK) - index * BLOCK;
    return n / (COUNT * BLOCK) * BLOCK + (rest < 0 ? 0 : rest < BLOCK ? rest : BLOCK);
  }
  // The position that a row holds.
  int position(int row) const {
    if constexpr (COUNT == 1) return row;
    return (row / BLOCK * COUNT + index) * BLOCK + row % BLOCK;
  }
};
