/* Event counters shared by all the fake libraries and read from Python.
 * They live in their own library (libcuda_emulator.so) so that every fake
 * library adds to the same numbers. The order of the fields must match
 * COUNTER_NAMES in counters.py. */
#pragma once
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct EmulatorCounters {
    long long kernel_launches;  /* cuLaunchKernel */
    long long library_calls;    /* cuBLAS and Thrust calls: kernels on a GPU */
    long long device_to_host;   /* copies that a GPU would have to wait for */
    long long host_to_device;
    long long device_to_device;
    long long memsets;
    long long allocations;      /* cudaMalloc: pool misses, not arrays */
    long long synchronizations; /* device, stream and event waits */
};

extern struct EmulatorCounters emulator_counters;

#define EMULATOR_COUNT(field) \
    __atomic_fetch_add(&emulator_counters.field, 1, __ATOMIC_RELAXED)

#define EMULATOR_ERROR(...)                          \
    do {                                             \
        fprintf(stderr, "cuda_emulator: " __VA_ARGS__); \
        fputc('\n', stderr);                         \
    } while (0)

#ifdef __cplusplus
}
#endif
