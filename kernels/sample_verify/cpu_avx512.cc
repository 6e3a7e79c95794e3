#include "row.h"

const edge::SampleFunctions edge::sample_avx512 = edge::FUNCTIONS;
