#include "blocks.h"

extern "C" void tree_attention_avx2(const tree_attention_call *call, const tree_attention_part *part) {
    edge::attend(*call, *part);
}
