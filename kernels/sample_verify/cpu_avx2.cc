#include "row.h"

const edge::SampleFunctions edge::sample_avx2 = edge::FUNCTIONS;
