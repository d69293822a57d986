#include "expert_dispatch.cuh"

namespace jakiro {
template cudaError_t dispatch<float>(JakiroExpertDispatch, cudaStream_t);
}
