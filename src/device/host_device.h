#pragma once

/// Before a function that the host and CUDA device code both call.
#ifdef __CUDACC__
#define GEMMA_HOST_DEVICE __host__ __device__
#else
#define GEMMA_HOST_DEVICE
#endif
