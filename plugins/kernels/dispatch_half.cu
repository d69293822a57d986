#include "expert_dispatch.cuh"

namespace jakiro {
template cudaError_t dispatch<half>(JakiroExpertDispatch, cudaStream_t);
}
