#include "expert_dispatch.cuh"

namespace jakiro {
template cudaError_t dispatch<bfloat16>(JakiroExpertDispatch, cudaStream_t);
}
